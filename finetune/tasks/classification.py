"""Classification: one label for a text or a pair of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from data_tools.errors import DataError
from finetune.batches import Examples
from finetune.rows import Record
from finetune.task_config import ClassificationTask, TextColumns
from finetune.tasks.models import BertForSequence
from finetune.tasks.pairs import encode_pairs
from finetune.tasks.task import Answer, Encoder, class_weights
from finetune.tasks.text_rows import TextRow, label_id, label_name, read_text_rows, sorted_labels, texts_of

Row = TextRow[str]


@dataclass(frozen=True, slots=True)
class Classification:
    """See `finetune.tasks.task.Task`."""

    section: ClassificationTask
    columns: TextColumns

    def read(self, path: Path, labelled: bool = True) -> list[Row]:
        """See Task."""

        def label_of(record: Record) -> str:
            column = self.columns.label
            return label_name(record, record.get(column, "data.label"), column)

        return read_text_rows(path, self.columns, label_of if labelled else None)

    def infer_labels(self, path: Path, rows: Sequence[Row]) -> tuple[str, ...]:
        """See Task."""
        found = {row.label for row in rows if row.label is not None}
        if len(found) < 2:
            raise DataError(
                f"{path}: every row has the label {rows[0].label!r}; classification needs two or more"
            )
        return sorted_labels(found)

    def encode(self, rows: Sequence[Row], encoder: Encoder) -> Examples:
        """See Task."""
        ids = {name: i for i, name in enumerate(encoder.labels)}
        labels = [label_id(ids, row.label, row.where) for row in rows if row.label is not None]
        targets = {"labels": np.array(labels, np.int64)} if labels else {}
        return encode_pairs(encoder, *texts_of(rows), targets)

    def build(
        self, model: Any, labels: Sequence[str], train: Examples | None = None, **layout: Any
    ) -> nn.Module:
        """See Task."""
        weights = None
        if train is not None and self.section.class_weights == "balanced":
            weights = class_weights(np.bincount(train.targets["labels"], minlength=len(labels)))
        return BertForSequence(
            model, len(labels), dropout=self.section.dropout, class_weights=weights, **layout
        )

    def answers(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        examples: Examples,
        rows: Sequence[Row],
        labels: Sequence[str],
    ) -> list[Answer]:
        """Label and probability, as transformers' text-classification pipeline gives them."""
        return [{"label": labels[int(p.argmax())], "score": float(p.max())} for p in map(softmax, outputs)]

    def score(
        self, answers: Sequence[Answer], rows: Sequence[Row], labels: Sequence[str], loss: float
    ) -> dict[str, float]:
        """See Task."""
        from sklearn import metrics

        truth, found = [row.label for row in rows], [answer["label"] for answer in answers]
        f1 = {
            f"f1_{average}": float(
                metrics.f1_score(truth, found, labels=list(labels), average=average, zero_division=0)
            )
            for average in ("macro", "weighted")
        }
        return {
            "accuracy": float(metrics.accuracy_score(truth, found)),
            **f1,
            "mcc": float(metrics.matthews_corrcoef(truth, found)),
        }

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> Mapping[str, float]:
        """Always the most frequent label of the training data."""
        counts = Counter(row.label for row in train)
        most_frequent = max(sorted(counts, key=str), key=lambda label: counts[label])
        return {"majority_class_accuracy": sum(row.label == most_frequent for row in rows) / len(rows)}

    def error(self, answer: Answer, row: Row) -> float:
        """How sure a wrong answer was."""
        return 0.0 if answer["label"] == row.label else float(answer["score"])

    def truth(self, row: Row) -> str | None:
        """See Task."""
        return row.label


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Probabilities over the last dimension."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = shifted / shifted.sum(-1, keepdims=True)
    return probabilities
