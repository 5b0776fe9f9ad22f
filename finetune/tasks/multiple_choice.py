"""Multiple choice: which of several texts goes with a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from data_tools.errors import DataError
from finetune.batches import Examples
from finetune.rows import Record, read_records, short
from finetune.task_config import ChoiceColumns, MultipleChoiceTask
from finetune.tasks.classification import softmax
from finetune.tasks.models import BertForChoices
from finetune.tasks.pairs import encode_pairs
from finetune.tasks.task import Answer, Encoder


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A text with choices.

    Attributes:
        where: "file:line".
        text: What all choices go with.
        choices: As many in every row.
        label: Number of the right one; None where it is to be found.
        fields: The row as it was read.
    """

    where: str
    text: str
    choices: tuple[str, ...]
    label: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """See `finetune.tasks.task.Task`."""

    section: MultipleChoiceTask
    columns: ChoiceColumns

    def read(self, path: Path, labelled: bool = True) -> list[ChoiceRow]:
        """See Task."""
        rows = [self._row(record, labelled) for record in read_records(path)]
        for row in rows:
            if len(row.choices) != len(rows[0].choices):
                raise DataError(
                    f"{row.where}: {len(row.choices)} choices, the first row of the file has "
                    f"{len(rows[0].choices)}; all rows of a file must have as many"
                )
        return rows

    def infer_labels(self, path: Path, rows: Sequence[ChoiceRow]) -> tuple[str, ...]:
        """None: choices differ from row to row."""
        return ()

    def encode(self, rows: Sequence[ChoiceRow], encoder: Encoder) -> Examples:
        """See Task; the sequences of a row are its text with each of its choices."""
        texts = [row.text for row in rows for _ in row.choices]
        choices = [choice for row in rows for choice in row.choices]
        labels = [row.label for row in rows if row.label is not None]
        pairs = encode_pairs(encoder, texts, choices, {})
        return Examples(
            sequences=pairs.sequences,
            fill=pairs.fill,
            targets={"labels": np.array(labels, np.int64)} if labels else {},
            rows=np.arange(len(rows)),
            truncated=pairs.truncated,
            sequences_each=len(rows[0].choices) if rows else 1,
        )

    def build(
        self, model: Any, labels: Sequence[str], train: Examples | None = None, **layout: Any
    ) -> nn.Module:
        """See Task."""
        return BertForChoices(model, self.section.dropout, **layout)

    def answers(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        examples: Examples,
        rows: Sequence[ChoiceRow],
        labels: Sequence[str],
    ) -> list[Answer]:
        """Number and text of the best choice, and the probability of each."""
        answers = []
        for logits, row in zip(outputs, rows, strict=True):
            best, found = int(logits.argmax()), softmax(logits)
            answers.append({"choice": best, "text": row.choices[best], "scores": found.tolist()})
        return answers

    def score(
        self, answers: Sequence[Answer], rows: Sequence[ChoiceRow], labels: Sequence[str], loss: float
    ) -> dict[str, float]:
        """See Task."""
        right = [answer["choice"] == row.label for answer, row in zip(answers, rows, strict=True)]
        return {"accuracy": float(np.mean(right))}

    def baseline(self, train: Sequence[ChoiceRow], rows: Sequence[ChoiceRow]) -> Mapping[str, float]:
        """Always the place in which the right choice stands most often in the training data."""
        counts = Counter(row.label for row in train)
        most_frequent = max(sorted(counts, key=str), key=lambda label: counts[label])
        return {"majority_place_accuracy": sum(row.label == most_frequent for row in rows) / len(rows)}

    def error(self, answer: Answer, row: ChoiceRow) -> float:
        """How sure a wrong answer was."""
        return 0.0 if answer["choice"] == row.label else float(answer["scores"][answer["choice"]])

    def truth(self, row: ChoiceRow) -> int | None:
        """See Task."""
        return row.label

    def _row(self, record: Record, labelled: bool) -> ChoiceRow:
        columns, text = self.columns, record.text(self.columns.text, "data.text")
        choices = record.get(columns.choices, "data.choices")
        texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
        if not texts or len(choices) < 2:
            raise DataError(
                f"{record.where}: {columns.choices!r} must be a list of two texts or more, not "
                f"{short(choices)}"
            )
        label = None
        if labelled:
            label = _number_of(record.get(columns.label, "data.label"), choices)
            if label is None:
                raise DataError(
                    f"{record.where}: {columns.label!r} must be one of the choices or its number, 0 to "
                    f"{len(choices) - 1}, not {short(record.fields[columns.label])}"
                )
        return ChoiceRow(record.where, text, tuple(choices), label, record.fields)


def _number_of(value: object, choices: Sequence[str]) -> int | None:
    """The number of the right choice, given as such or as one of the texts."""
    if isinstance(value, str):
        return choices.index(value) if choices.count(value) == 1 else None
    number = isinstance(value, int) and not isinstance(value, bool)
    return value if number and 0 <= value < len(choices) else None  # type: ignore[operator, return-value]
