"""Multi-label classification: any number of labels for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from data_tools.errors import DataError
from finetune.batches import Examples
from finetune.rows import Record, short
from finetune.task_config import MultiLabelColumns, MultiLabelTask
from finetune.tasks.models import BertForSequence
from finetune.tasks.pairs import encode_pairs
from finetune.tasks.task import Answer, Encoder
from finetune.tasks.text_rows import TextRow, label_id, label_name, read_text_rows, sorted_labels, texts_of

Row = TextRow[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class MultiLabel:
    """See `finetune.tasks.task.Task`."""

    section: MultiLabelTask
    columns: MultiLabelColumns

    def read(self, path: Path, labelled: bool = True) -> list[Row]:
        """See Task."""
        return read_text_rows(path, self.columns, self._labels_of if labelled else None)

    def infer_labels(self, path: Path, rows: Sequence[Row]) -> tuple[str, ...]:
        """See Task."""
        found = {name for row in rows for name in row.label or ()}
        if not found:
            raise DataError(f"{path}: no row has a label")
        return sorted_labels(found)

    def encode(self, rows: Sequence[Row], encoder: Encoder) -> Examples:
        """See Task."""
        ids = {name: i for i, name in enumerate(encoder.labels)}
        targets: dict[str, npt.NDArray[Any]] = {}
        if rows and rows[0].label is not None:
            targets["labels"] = np.zeros((len(rows), len(ids)), np.float32)
            for number, row in enumerate(rows):
                for name in row.label or ():
                    targets["labels"][number, label_id(ids, name, row.where)] = 1.0
        return encode_pairs(encoder, *texts_of(rows), targets)

    def build(
        self, model: Any, labels: Sequence[str], train: Examples | None = None, **layout: Any
    ) -> nn.Module:
        """See Task."""
        return BertForSequence(model, len(labels), "multi_label", self.section.dropout, **layout)

    def answers(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        examples: Examples,
        rows: Sequence[Row],
        labels: Sequence[str],
    ) -> list[Answer]:
        """The labels that reach the threshold, and the probability of each label."""
        answers = []
        for logits in outputs:
            probabilities = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
            scores = {name: float(p) for name, p in zip(labels, probabilities, strict=True)}
            found = [name for name, p in scores.items() if p >= self.section.threshold]
            answers.append({"labels": found, "scores": scores})
        return answers

    def score(
        self, answers: Sequence[Answer], rows: Sequence[Row], labels: Sequence[str], loss: float
    ) -> dict[str, float]:
        """See Task."""
        from sklearn import metrics

        truth = np.array([[name in (row.label or ()) for name in labels] for row in rows])
        found = np.array([[name in answer["labels"] for name in labels] for answer in answers])
        # One label after the other: scikit-learn takes a matrix with one column for two classes, and would
        # count the rows without the label as right answers.
        each = [metrics.f1_score(*pair, zero_division=0) for pair in zip(truth.T, found.T, strict=True)]
        return {
            "f1_micro": float(metrics.f1_score(truth.ravel(), found.ravel(), zero_division=0)),
            "f1_macro": float(np.mean(each)),
            "exact_match": float((truth == found).all(-1).mean()),
        }

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> Mapping[str, float]:
        """Never any label."""
        return {"no_label_exact_match": sum(not row.label for row in rows) / len(rows)}

    def error(self, answer: Answer, row: Row) -> float:
        """Labels that are missing or too many."""
        return float(len(set(answer["labels"]) ^ set(row.label or ())))

    def truth(self, row: Row) -> list[str]:
        """See Task."""
        return list(row.label or ())

    def _labels_of(self, record: Record) -> tuple[str, ...]:
        column = self.columns.label
        value = record.get(column, "data.label")
        if isinstance(value, str):
            value = [part for part in (part.strip() for part in value.split(self.columns.separator)) if part]
        if not isinstance(value, list):
            raise DataError(
                f"{record.where}: {column!r} must be a list of labels, or text that data.separator "
                f"{self.columns.separator!r} splits, not {short(value)}"
            )
        return tuple(dict.fromkeys(label_name(record, item, column) for item in value))
