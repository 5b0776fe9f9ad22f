"""The signal's lead time follows what a run has measured."""

from __future__ import annotations

import json
from pathlib import Path

from launch.lead_time import lead_seconds, measured_lead_seconds


def write_run(run_dir: Path, steps: list[float], saves: list[float]) -> None:
    (run_dir / "logs").mkdir(parents=True)
    rows = [json.dumps({"step": i, "loss": 1.0, "step_seconds": s}) for i, s in enumerate(steps)]
    (run_dir / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 9, "eval/loss": 2.0}', '{"step": 1']))
    log = "".join(f"saved {run_dir}/checkpoints/step-1 in {seconds} s\n" for seconds in saves)
    (run_dir / "logs" / "rank-0.log").write_text(f"=== attempt 1 ===\n{log}")


def test_a_new_run_gets_the_default(tmp_path):
    assert measured_lead_seconds(tmp_path) is None
    assert lead_seconds(tmp_path, 86400) == 300


def test_steps_and_saves_are_measured(tmp_path):
    write_run(tmp_path / "run", steps=[2.0, 10.0, 3.0], saves=[20.0, 45.5])
    assert measured_lead_seconds(tmp_path / "run") == 60 + 30 + 91
    assert lead_seconds(tmp_path / "run", 86400) == 181


def test_without_a_save_the_steps_count(tmp_path):
    write_run(tmp_path / "run", steps=[1.0], saves=[])
    assert measured_lead_seconds(tmp_path / "run") == 63


def test_a_short_limit_keeps_most_of_its_time(tmp_path):
    write_run(tmp_path / "run", steps=[100.0], saves=[100.0])
    assert lead_seconds(tmp_path / "run", 600) == 200
