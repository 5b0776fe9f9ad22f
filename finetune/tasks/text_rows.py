"""Rows of the tasks about whole texts: one text or two, and a label of some kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from data_tools.errors import DataError
from finetune.rows import Record, listed, read_records, short
from finetune.task_config import TextColumns

Label = TypeVar("Label")


@dataclass(frozen=True, slots=True)
class TextRow(Generic[Label]):
    """One text, or two.

    Attributes:
        where: "file:line".
        text: Not blank.
        pair: The second text, where the task has one.
        label: None where it is to be found.
        fields: The row as it was read.
    """

    where: str
    text: str
    pair: str | None = None
    label: Label | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)


def read_text_rows(
    path: Path, columns: TextColumns, label_of: Callable[[Record], Label] | None
) -> list[TextRow[Label]]:
    """The rows of a table.

    Args:
        path: The file.
        columns: Their names.
        label_of: Reads the label; None leaves it out.

    Raises:
        DataError: A bad row, with file and line.
    """
    return [
        TextRow(
            record.where,
            record.text(columns.text, "data.text"),
            record.text(columns.text_pair, "data.text_pair") if columns.text_pair else None,
            label_of(record) if label_of else None,
            record.fields,
        )
        for record in read_records(path)
    ]


def texts_of(rows: Sequence[TextRow[Label]]) -> tuple[list[str], list[str] | None]:
    """Texts and, where rows have them, second texts."""
    seconds = [row.pair for row in rows if row.pair is not None]
    return [row.text for row in rows], seconds if rows and rows[0].pair is not None else None


def label_name(record: Record, value: object, column: str) -> str:
    """A label as text without spaces around it; true and false in lower case.

    Raises:
        DataError: It is neither text that is not blank nor a whole number nor true or false.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int) or (isinstance(value, str) and not value.strip()):
        raise DataError(
            f"{record.where}: {column!r} must be text, a whole number, true or false, not {short(value)}"
        )
    return str(value).strip()


def sorted_labels(names: Collection[str]) -> tuple[str, ...]:
    """Numbers by value and text by alphabet; the position is the label's id.

    Numbers of the same value, such as 1 and 01, are ordered as texts: a set's own order differs between
    processes.
    """
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def label_id(ids: dict[str, int], name: str, where: str) -> int:
    """The id of a label.

    Raises:
        DataError: The training data does not have it.
    """
    if name not in ids:
        raise DataError(
            f"{where}: the label {name!r} does not occur in the training data, which has {listed(list(ids))}"
        )
    return ids[name]
