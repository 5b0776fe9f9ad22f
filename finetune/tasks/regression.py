"""Regression: a number for a text or a pair of texts."""

from __future__ import annotations

import math
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
from finetune.task_config import RegressionTask, TextColumns
from finetune.tasks.models import BertForSequence
from finetune.tasks.pairs import encode_pairs
from finetune.tasks.task import Answer, Encoder
from finetune.tasks.text_rows import TextRow, read_text_rows, texts_of

Row = TextRow[float]


@dataclass(frozen=True, slots=True)
class Regression:
    """See `finetune.tasks.task.Task`."""

    section: RegressionTask
    columns: TextColumns

    def read(self, path: Path, labelled: bool = True) -> list[Row]:
        """See Task."""
        return read_text_rows(path, self.columns, self._number_of if labelled else None)

    def infer_labels(self, path: Path, rows: Sequence[Row]) -> tuple[str, ...]:
        """None: the model has one output."""
        return ()

    def encode(self, rows: Sequence[Row], encoder: Encoder) -> Examples:
        """See Task."""
        values = [row.label for row in rows if row.label is not None]
        targets = {"labels": np.array(values, np.float32)} if values else {}
        return encode_pairs(encoder, *texts_of(rows), targets)

    def build(
        self, model: Any, labels: Sequence[str], train: Examples | None = None, **layout: Any
    ) -> nn.Module:
        """See Task."""
        return BertForSequence(model, 1, "regression", self.section.dropout, **layout)

    def answers(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        examples: Examples,
        rows: Sequence[Row],
        labels: Sequence[str],
    ) -> list[Answer]:
        """The number."""
        return [{"value": float(output[0])} for output in outputs]

    def score(
        self, answers: Sequence[Answer], rows: Sequence[Row], labels: Sequence[str], loss: float
    ) -> dict[str, float]:
        """See Task; a correlation is 0 where all values are the same."""
        from scipy import stats

        truth = np.array([row.label for row in rows], np.float64)
        found = np.array([answer["value"] for answer in answers], np.float64)
        varied = len(rows) > 1 and np.ptp(truth) > 0 and np.ptp(found) > 0
        return {
            "pearson": float(stats.pearsonr(truth, found).statistic) if varied else 0.0,
            "spearman": float(stats.spearmanr(truth, found).statistic) if varied else 0.0,
            "rmse": float(np.sqrt(np.mean((truth - found) ** 2))),
            "mae": float(np.mean(np.abs(truth - found))),
        }

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> Mapping[str, float]:
        """Always the mean of the training data."""
        mean = float(np.mean([row.label for row in train if row.label is not None]))
        errors = [row.label - mean for row in rows if row.label is not None]
        return {"mean_value_rmse": float(np.sqrt(np.mean(np.square(errors))))}

    def error(self, answer: Answer, row: Row) -> float:
        """How far it is off."""
        return 0.0 if row.label is None else abs(answer["value"] - row.label)

    def truth(self, row: Row) -> float | None:
        """See Task."""
        return row.label

    def _number_of(self, record: Record) -> float:
        column = self.columns.label
        value = record.get(column, "data.label")
        no_number = isinstance(value, bool) or (isinstance(value, str) and "_" in value)  # 1_0 is Python's 10
        try:
            number = float("nan") if no_number else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not math.isfinite(number):
            raise DataError(f"{record.where}: {column!r} must be a number, not {short(value)}")
        return number
