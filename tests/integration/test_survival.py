"""Hangs and crashes under `headwater launch local --max-restarts`: named, ended, and made good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.runs import HEADWATER, environment, finish, rows, start, tiny_run

LAUNCH = [*HEADWATER, "launch", "local", "--nproc", "2"]
pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def ends(run_dir: Path) -> list[int]:
    lines = (run_dir / "logs" / "attempts.jsonl").read_text().splitlines()
    return [row["exit_code"] for row in map(json.loads, lines) if "exit_code" in row]


def test_a_hang_is_reported_and_the_run_started_again(corpus: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = ["--set", "training.hang_timeout_seconds=8", "--max-restarts", "1"]
    planted = {"HEADWATER_FAULT": "train hang rank=1 nth=7", "HEADWATER_FAULT_ONCE": str(tmp_path / "once")}
    process = start([*LAUNCH, *tiny_run("gpt", corpus, run_dir, steps=8), *settings], environment() | planted)
    code, output = finish(process)
    assert code == 0, output
    assert ends(run_dir) == [76, 0]
    report = (run_dir / "hang-report.txt").read_text()
    assert "silent: rank 1 on " in report and "step 7" in report, report
    stacks = (run_dir / "logs" / "rank-1.log").read_text()
    assert "has not moved for 8 s in step 7" in stacks and "faults.py" in stacks
    assert "rank 0 has not moved" in (run_dir / "logs" / "rank-0.log").read_text()
    assert "starting it again" in output
    assert [row["step"] for row in rows(run_dir) if "loss" in row] == list(range(1, 9))


def test_a_killed_rank_is_started_again_a_limited_number_of_times(corpus: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    planted = {"HEADWATER_FAULT": "train kill rank=1 nth=2"}
    command = [*LAUNCH, *tiny_run("gpt", corpus, run_dir, steps=8), "--max-restarts", "1"]
    code, output = finish(start(command, environment() | planted))
    assert code == 137, output
    assert ends(run_dir) == [137, 137]
