"""The files of an evaluation, whatever the labels are called."""

from __future__ import annotations

import json

import matplotlib.mathtext
import pytest

from finetune import report
from finetune.evaluation import Evaluation
from finetune.task_config import ClassificationTask, TextColumns
from finetune.tasks import open_task
from finetune.tasks.text_rows import TextRow
from tests.unit.finetune.test_output_rows import strictly


def written(directory, labels, score=0.9, loss=0.0):
    task = open_task(ClassificationTask(kind="classification"), TextColumns())
    rows = [TextRow("f:1", "t", label=label) for label in labels]
    answers = [{"label": label, "score": score} for label in reversed(labels)]
    evaluation = Evaluation({"loss": loss}, answers)
    return [path.name for path in report.write_report(directory, task, labels, rows, evaluation)]


@pytest.mark.parametrize("labels", [("$1%-$2%", "x"), ("$0-$50", "$50-$100"), (r"a\$b", "_^{")])
def test_names_of_labels_are_drawn_as_they_are(tmp_path, monkeypatch, labels):
    drawn = []
    monkeypatch.setattr(matplotlib.mathtext.MathTextParser, "parse", lambda *text, **_: drawn.append(text))
    assert written(tmp_path, labels) == ["errors.jsonl", "metrics.json", "confusion.png"]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG") and not drawn


def test_a_picture_that_cannot_be_drawn_loses_no_scores(tmp_path, monkeypatch, capsys):
    def fails(path, *_):
        path.write_bytes(b"half")
        raise RuntimeError("no font")

    monkeypatch.setattr(report, "_draw_confusion", fails)
    assert written(tmp_path, ("a", "b")) == ["errors.jsonl", "metrics.json"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"loss": 0.0, "rows": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.jsonl", "metrics.json"]
    assert f"{tmp_path / 'confusion.png'}: not drawn: no font" in capsys.readouterr().out


def test_the_files_are_json_also_where_scores_are_no_numbers(tmp_path):
    written(tmp_path, ("a", "b"), score=float("nan"), loss=float("inf"))
    assert strictly((tmp_path / "metrics.json").read_text()) == {"loss": None, "rows": 2}
    answers = [strictly(line)["answer"] for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert answers and all(answer["score"] is None for answer in answers)
