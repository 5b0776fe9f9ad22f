"""Stop signals, on one rank."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pretrain.loop import TrainingError, _check_finite
from pretrain.step import StepMetrics

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


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_training_ends_on_values_that_are_not_finite(loss: float, norm: float) -> None:
    class Config:
        run_dir = "runs/x"

    with pytest.raises(TrainingError, match="step 7: .* without saving") as caught:
        _check_finite(Config(), 7, StepMetrics({"loss": loss}, norm, True))  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
