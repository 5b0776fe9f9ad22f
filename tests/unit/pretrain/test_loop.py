"""When a run stops, and when it refuses to start."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain import loop
from pretrain.checkpoint import CheckpointError
from pretrain.loop import _check_finite
from pretrain.step import StepMetrics, TrainingError

SCRIPT = """
import os, signal, sys, time
import torch
from pretrain import stop
stop.dist.all_reduce = lambda tensor, op: None
class One:
    device = torch.device("cpu")
signals = stop.StopSignal(One())
assert not signals.agreed()
for name, pause in [word.split(":") for word in sys.argv[1:]]:
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(float(pause))
assert signals.agreed()
print("alive")
"""


def send(*signals: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *signals], check=False, capture_output=True
    ).returncode


def test_one_request_in_many_signals_never_ends_a_rank() -> None:
    assert send("SIGUSR1:0", "SIGTERM:1.2", "SIGTERM:0", "SIGINT:0", "SIGINT:0", "SIGUSR2:0") == 0


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    assert send("SIGINT:1.2", "SIGINT:0") == 128 + signal.SIGINT


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting again from step 0 would throw the run away without a word."""
    (tmp_path / "checkpoints" / "step-00000005").mkdir(parents=True)
    monkeypatch.setattr(loop, "broadcast_from_main", lambda value: value)
    job = SimpleNamespace(
        config=SimpleNamespace(run_dir=str(tmp_path)), topology=SimpleNamespace(is_main=True)
    )
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        loop._resume(job)  # type: ignore[arg-type]


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_training_ends_on_values_that_are_not_finite(loss: float, norm: float) -> None:
    class Config:
        run_dir = "runs/x"

    with pytest.raises(TrainingError, match="step 7: .* without saving") as caught:
        _check_finite(Config(), 7, StepMetrics({"loss": loss}, norm, True))  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
