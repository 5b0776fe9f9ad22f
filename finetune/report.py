"""What an evaluation leaves: metrics.json, errors.jsonl and, for labels, a picture of the confusions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.plain_json import to_json
from data_tools.publish import write_file, write_json
from finetune.evaluation import Evaluation
from finetune.tasks.task import Task

METRICS, ERRORS, CONFUSION = "metrics.json", "errors.jsonl", "confusion.png"
ERROR_SAMPLES = 100
MOST_LABELS = 40
"""Labels that a picture can show."""


def write_report(
    directory: Path, task: Task, labels: Sequence[str], rows: Sequence[Any], evaluation: Evaluation
) -> list[Path]:
    """Write the files, each whole or not at all, and return them.

    A picture that cannot be drawn, whatever the reason, is told and left out: it is worth less than the
    scores that the caller still has to save.
    """
    written = []
    samples = _error_samples(task, rows, evaluation)
    if evaluation.answers:
        lines = (to_json(sample).encode() + b"\n" for sample in samples)
        write_file(directory / ERRORS, b"".join(lines))
        written.append(directory / ERRORS)
    write_json(directory / METRICS, {**evaluation.scores, "rows": len(rows)})
    written.append(directory / METRICS)
    if evaluation.answers and 1 < len(labels) <= MOST_LABELS and "label" in evaluation.answers[0]:
        truth, found = [task.truth(row) for row in rows], [answer["label"] for answer in evaluation.answers]
        picture = directory / CONFUSION
        try:
            _draw_confusion(picture, truth, found, labels)
            written.append(picture)
        except Exception as error:  # of fonts and layouts: matplotlib raises all kinds
            picture.unlink(missing_ok=True)
            print(f"{picture}: not drawn: {error}", flush=True)
    return written


def _error_samples(task: Task, rows: Sequence[Any], evaluation: Evaluation) -> list[dict[str, Any]]:
    """The worst answers with their rows."""
    pairs = [
        (_worst_if_nan(task.error(answer, row)), answer, row)
        for answer, row in zip(evaluation.answers, rows, strict=bool(evaluation.answers))
    ]
    wrong = sorted((pair for pair in pairs if pair[0] > 0), key=lambda pair: -pair[0])[:ERROR_SAMPLES]
    return [
        {
            "where": row.where,
            "error": error,
            "truth": task.truth(row),
            "answer": _brief(answer),
            **_input(row),
        }
        for error, answer, row in wrong
    ]


def _worst_if_nan(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _input(row: Any) -> dict[str, Any]:
    """What the model was given of a row."""
    names = ("text", "pair", "words", "question", "context")
    return {name: value for name in names if (value := getattr(row, name, None)) is not None}


def _brief(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "n_best"}


def _draw_confusion(path: Path, truth: Sequence[str], found: Sequence[str], labels: Sequence[str]) -> None:
    """Rows are the true labels, columns the given ones; each row adds up to 1, cells show counts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(truth, found, labels=list(labels))
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    side = 3.0 + 0.45 * len(labels)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    # Names are no formulas: $ in them stands for itself.
    axes.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    for i in range(len(labels)):
        for j in range(len(labels)):
            if counts[i, j]:
                color = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=color, fontsize=8)
    FigureCanvasAgg(figure).print_png(path)
