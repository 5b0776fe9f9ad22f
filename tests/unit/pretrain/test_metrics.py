"""metrics.jsonl and TensorBoard of a run that is resumed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from pretrain.metrics import RunMetrics


def steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_rows_beyond_the_resumed_step_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorBoard reads event files by name: second, host, process, number. Attempts are processes that start
    # seconds apart; two writers of one second and process are read wrongly if they are number 9 and 10.
    monkeypatch.setattr(
        event_file_writer, "time", SimpleNamespace(time=itertools.count(1_000_000_000).__next__)
    )
    with RunMetrics(tmp_path, 0) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 4, "lo')  # killed while writing
    with RunMetrics(tmp_path, 2) as metrics:
        metrics.write(3, {"loss": 5.0})
    assert steps(tmp_path) == [1, 2, 3]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    scalars = {event.step: event.value for event in board.Scalars("loss")}
    assert scalars == pytest.approx({1: 1.0, 2: 0.5, 3: 5.0})


def test_what_is_not_finite_stays_valid_json(tmp_path: Path) -> None:
    with RunMetrics(tmp_path, 0) as metrics:
        metrics.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "grad_norm": None,
        "lr": 0.5,
    }


def test_lines_on_something_that_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunMetrics(tmp_path, 0) as metrics:
        metrics.live("step 1")
        metrics.say("done")
    assert capsys.readouterr().err == "step 1\ndone\n"


def test_live_line_is_rewritten_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_TTY", "1")
    with RunMetrics(tmp_path, 0) as metrics:
        metrics.live("step 1")
        metrics.live("step 2")
        metrics.say("done")
    assert capsys.readouterr().err == "\r\x1b[Kstep 1\r\x1b[Kstep 2\ndone\n"
