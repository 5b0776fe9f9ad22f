"""The profile of a few steps: which steps, which table, which trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from pretrain.profiling import PHASES, StepProfile, phase_table


def job_of(directory: Path, steps: int, is_main: bool = True) -> Any:
    training = SimpleNamespace(profile_steps=steps)
    return SimpleNamespace(
        config=SimpleNamespace(training=training),
        topology=SimpleNamespace(is_main=is_main),
        run_dir=directory,
    )


def run_steps(job: Any, count: int) -> list[str]:
    told: list[str] = []
    profile = StepProfile(job, told.append)
    for step in range(count):
        profile.step_begins(step)
        for name in ("data", "forward", "backward", "update"):
            with record_function(f"phase: {name}"):
                torch.ones(200, 200) @ torch.ones(200, 200)
    profile.finish(count)
    return told


@pytest.mark.parametrize(("count", "last"), [(10, 5), (4, 4)])  # the run may end before the profile does
def test_profiles_steps_behind_the_warm_up(tmp_path: Path, count: int, last: int) -> None:
    (told,) = run_steps(job_of(tmp_path, steps=3), count)
    trace = tmp_path / "profile" / f"step-{last:08d}.json.gz"
    with gzip.open(trace, "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    assert names.count("phase: forward") == last - 2
    assert f"profile of {last - 2} steps up to step {last}" in told
    assert "aten::mm" in told and str(trace) in told


@pytest.mark.parametrize("job", [{"steps": 0}, {"steps": 3, "is_main": False}])
def test_silent_where_not_asked(tmp_path: Path, job: dict[str, Any]) -> None:
    assert run_steps(job_of(tmp_path, **job), 8) == []
    assert list(tmp_path.iterdir()) == []


def test_phases_and_the_rest_add_up() -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (*PHASES, "communication")}
    found |= {
        "forward": [(0.0, 4000.0), (10000.0, 14000.0)],
        "loss": [(3000.0, 4000.0), (13000.0, 14000.0)],
        "backward": [(4000.0, 9000.0), (14000.0, 20000.0)],
        "communication": [(5000.0, 7000.0), (6000.0, 8000.0)],
    }
    rows = {line.split("  ")[1].strip(): line.split()[-4:] for line in phase_table(found, steps=2)}
    assert rows["forward"] == ["3.00", "ms", "30.0", "%"]
    assert rows["loss"] == ["1.00", "ms", "10.0", "%"]
    assert rows["backward"] == ["5.50", "ms", "55.0", "%"]
    assert rows["other"] == ["0.50", "ms", "5.0", "%"]
    assert rows["whole step"] == ["10.00", "ms", "100.0", "%"]
    assert rows["communication*"] == ["1.50", "ms", "15.0", "%"]
