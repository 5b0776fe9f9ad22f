"""The demo's own logic: order and skipping of steps, the deliberate stop, the summary."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launch import cli, demo
from launch.demo_summary import last_step, summary


@pytest.fixture(autouse=True)
def repository_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Replace `headwater` by a Python script that is given as text; `calls` counts its runs."""

    def install(script: str) -> Path:
        calls = tmp_path / "calls"
        path = tmp_path / "command.py"
        path.write_text(f"open({str(calls)!r}, 'a').write('x')\nrun = {str(tmp_path / 'run')!r}\n{script}")
        monkeypatch.setattr(demo, "COMMAND", (sys.executable, str(path)))
        return calls

    return install


def write_metrics(run_dir: Path, rows: list[dict[str, float]], torn: str = "") -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)


@pytest.mark.parametrize("small", [True, False])
def test_every_step_is_a_headwater_command_that_writes_below_out(tmp_path, small):
    steps = demo.demo_steps(tmp_path / "out", small)
    assert [step.words[0] for step in steps] == [
        *("data", "data", "data", "launch", "launch", "finetune", "finetune", "generate", "export", "export")
    ]
    assert all(step.words[0] in cli.GROUPS for step in steps)
    assert all(str(tmp_path / "out") in " ".join(step.words) for step in steps)
    assert sum(step.stop_in is not None for step in steps) == 1


def test_the_small_form_is_smaller(tmp_path):
    def train_steps(small: bool) -> list[int]:
        return [int(s.makes.name[5:]) for s in demo.demo_steps(tmp_path, small) if s.words[0] == "launch"]

    assert all(a < b for a, b in zip(train_steps(True), train_steps(False), strict=True))


def test_a_step_whose_result_is_there_is_skipped(command, tmp_path):
    calls = command("")
    demo.run_step(demo.Step(title="t", words=("export",), makes=tmp_path))
    assert not calls.exists()
    demo.run_step(demo.Step(title="t", words=("export",), makes=tmp_path / "absent"))
    assert calls.read_text() == "x"


def test_a_failing_step_is_named_with_its_exit_code(command):
    command("raise SystemExit(2)")
    with pytest.raises(demo.StepFailed, match="`headwater export` failed with exit code 2") as error:
        demo.run_step(demo.Step(title="t", words=("export",)))
    assert error.value.exit_code == 2


RUN = """
import json, os, pathlib, signal, sys, time
metrics = pathlib.Path(run, "metrics.jsonl")
metrics.parent.mkdir(exist_ok=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
step = metrics.read_text().count("step") if metrics.exists() else 0
while step < 40:
    step += 1
    with metrics.open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
    time.sleep(0.05)
    if stopped:
        sys.exit(75)
"""


def test_a_run_is_stopped_midway_once_and_started_again(command, tmp_path, capsys):
    calls = command(RUN)
    step = demo.Step(title="t", words=("launch",), stop_in=tmp_path / "run", stop_at=5)
    demo.run_step(step)
    assert calls.read_text() == "xx"
    assert last_step(tmp_path / "run") == 40
    assert "stopped midway on purpose" in capsys.readouterr().out
    demo.run_step(step)
    assert calls.read_text() == "xxx", "beyond the step it is not stopped again"


def test_the_last_step_survives_a_half_written_line(tmp_path):
    assert last_step(tmp_path) == 0
    write_metrics(tmp_path, [{"step": 10}, {"step": 20}], torn='{"step": 3')
    assert last_step(tmp_path) == 20


def test_the_summary_tells_losses_accuracies_and_times(tmp_path):
    rows = [
        {"step": 10, "loss": 7.0, "tokens_per_second": 100.0},
        {"step": 20, "loss": 5.5, "tokens_per_second": 300.0},
        {"step": 20, "eval/loss": 5.75},
    ]
    for name in ("gpt", "bert"):
        write_metrics(tmp_path / name, rows)
    for start, accuracy in (("pretrained", 0.75), ("random", 0.5)):
        (tmp_path / f"finetune-{start}").mkdir()
        results = {"accuracy": accuracy, "n": 8, "majority_class_accuracy": 0.25}
        (tmp_path / f"finetune-{start}" / "results.json").write_text(json.dumps(results))
    text = summary(tmp_path, [("one", 1.0), ("two", 2.0)], 3.0)
    assert "gpt   20 steps, training loss 7.000 -> 5.500, validation loss 5.750, 300 tokens/s" in text
    assert "75.0% of 8 (always the largest class: 25.0%)" in text and "50.0% of 8" in text
