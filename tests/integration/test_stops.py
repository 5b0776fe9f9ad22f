"""A stop signal in the forward pass, an evaluation or a save, under each launcher: saved within a step.

HEADWATER_ALL_STOPS=1 runs all 18 combinations instead of three that cover every launcher, signal and moment.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from pathlib import Path

import pytest

from pretrain.checkpoint.manifest import list_checkpoints, verify
from pretrain.faults import PAUSE_SECONDS
from tests.support.runs import LAUNCHERS, environment, finish, rows, start, tiny_run

MOMENTS = {"forward": "train pause nth=5", "evaluation": "evaluation pause", "save": "save.state pause nth=2"}
ALL = list(itertools.product(("headwater", "torchrun", "deepspeed"), ("SIGTERM", "SIGUSR1"), MOMENTS))
SOME = [
    ("headwater", "SIGUSR1", "save"),
    ("torchrun", "SIGTERM", "evaluation"),
    ("deepspeed", "SIGUSR1", "forward"),
]
EXIT_SECONDS = 30.0
"""For a step and a save of the tiny model, and the launcher's own end, on a busy machine."""
pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def command(launcher: str) -> list[str]:
    words = LAUNCHERS[launcher]
    if launcher == "torchrun":  # by itself it passes on SIGTERM and SIGINT only
        return [words[0], "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1", *words[1:]]
    return words


@pytest.mark.parametrize(
    ("launcher", "name", "moment"), ALL if os.environ.get("HEADWATER_ALL_STOPS") else SOME
)
def test_saved_and_exited_within_a_step(
    corpus: Path, tmp_path: Path, launcher: str, name: str, moment: str
) -> None:
    run_dir, reached = tmp_path / "run", tmp_path / "reached"
    planted = {"HEADWATER_FAULT": MOMENTS[moment], "HEADWATER_FAULT_ONCE": str(reached)}
    process = start([*command(launcher), *tiny_run("gpt", corpus, run_dir, 10_000)], environment() | planted)
    while not reached.exists():
        assert process.poll() is None, finish(process)[1]
        time.sleep(0.02)
    asked = time.monotonic()
    if launcher == "deepspeed":  # `deepspeed` passes nothing on; batch systems and terminals signal the group
        os.killpg(process.pid, signal.Signals[name])
    else:
        process.send_signal(signal.Signals[name])
    time.sleep(0.3)
    before = max((row["step"] for row in rows(run_dir)), default=0)
    code, output = finish(process, timeout_seconds=60.0)
    assert time.monotonic() - asked < PAUSE_SECONDS + EXIT_SECONDS
    assert code == 75 if launcher == "headwater" else code != 0, output
    log = (run_dir / "logs" / "rank-0.log").read_text()
    stopped = re.search(r"stopped after step (\d+), saved", log)
    assert stopped, log
    newest = list_checkpoints(run_dir)[-1]
    assert newest.name == f"step-{int(stopped[1]):08d}" and verify(newest) == []
    assert int(stopped[1]) <= before + 2  # the step in which it was asked, or the one after it
