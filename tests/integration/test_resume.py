"""Killed, stopped, damaged: the same command again goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.runs import HEADWATER, finish, rows, run, start, tiny_run, trajectory, wait_for_step

LAUNCH = [*HEADWATER, "launch", "local", "--nproc", "2"]
LAYOUT = {
    "gpt": ["--set", "parallel.tensor_model_parallel_size=2"],
    "bert": ["--set", "parallel.zero_stage=2"],
}
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    run_dirs = {}
    for kind, layout in LAYOUT.items():
        run_dirs[kind] = tmp_path_factory.mktemp("undisturbed") / kind
        run([*LAUNCH, *tiny_run(kind, corpus, run_dirs[kind]), *layout])
    return run_dirs


def test_undisturbed_run_is_complete(undisturbed: dict[str, Path]) -> None:
    trained = [row for row in trajectory(undisturbed["bert"]) if "loss" in row]
    assert [row["step"] for row in trained] == list(range(1, 17))
    last = trained[-1]
    assert last["loss"] == pytest.approx(last["mlm_loss"] + last["nsp_loss"])
    assert last["consumed_samples"] == 128
    assert last["consumed_tokens"] == 128 * 64
    assert 0 < last["epoch/corpus"] < 1
    for part in (
        "config.yaml",
        "tensorboard",
        "logs/rank-0.log",
        "logs/rank-1.log",
        "checkpoints/step-00000016/manifest.json",
    ):
        assert (undisturbed["bert"] / part).exists(), part
    kept = sorted(p.name for p in (undisturbed["bert"] / "checkpoints").iterdir())
    assert kept == ["step-00000015", "step-00000016"]  # keep_last: 2


@pytest.mark.slow
def test_kill_9_then_the_same_command(corpus: Path, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    command = [*LAUNCH, *tiny_run("bert", corpus, tmp_path / "bert"), *LAYOUT["bert"]]
    process = start(command)
    wait_for_step(tmp_path / "bert", 4)
    os.kill(process.pid, signal.SIGKILL)  # the launcher; its ranks die with it
    finish(process)
    assert "resuming from" in run(command)
    assert trajectory(tmp_path / "bert") == trajectory(undisturbed["bert"])


def test_killed_then_stopped_then_damaged(corpus: Path, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    """kill -9, the same command, SIGTERM, a damaged checkpoint, the same command."""
    run_dir = tmp_path / "gpt"
    command = [*LAUNCH, *tiny_run("gpt", corpus, run_dir), *LAYOUT["gpt"]]
    process = start(command)
    wait_for_step(run_dir, 4)
    os.kill(process.pid, signal.SIGKILL)  # the launcher; its ranks die with it
    finish(process)
    reached = max(row["step"] for row in rows(run_dir))
    process = start(command)
    wait_for_step(run_dir, reached + 1)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    first = re.search(r"resuming from .*/step-(\d+) ", output)
    assert first and 3 <= int(first[1]) <= reached, output
    newest = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    assert int(newest.name[5:]) > reached  # saved where it stopped, not at an interval
    state = newest / "state-tp01-dp0000.safetensors"
    content = bytearray(state.read_bytes())
    content[-100] ^= 1
    state.write_bytes(content)
    output = run(command)
    assert f"{state}: content does not match its hash; passed over" in output
    assert re.search(r"resuming from .*/step-\d+ ", output)
    assert f"resuming from {newest}" not in output
    assert trajectory(run_dir) == trajectory(undisturbed["gpt"])


def test_a_finished_run_exits_at_once(corpus: Path, undisturbed: dict[str, Path]) -> None:
    before = trajectory(undisturbed["gpt"])
    output = run([*LAUNCH, *tiny_run("gpt", corpus, undisturbed["gpt"]), *LAYOUT["gpt"]])
    assert "already complete: 16 steps" in output
    assert trajectory(undisturbed["gpt"]) == before
