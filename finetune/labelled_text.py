"""Labelled texts from JSON lines: rows with their line numbers, and the label map."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text."""

    line: int
    """In the file, counted from 1."""
    text: str
    label: str


def read_rows(path: Path, text_column: str, label_column: str) -> list[Row]:
    """Read a JSON-lines file; blank lines are skipped.

    Args:
        path: The file.
        text_column: JSON key of the text, a string that is not blank.
        label_column: JSON key of the label: a string, a whole number, true or false.

    Raises:
        DataError: No such file, no rows, or a bad row, with its line.
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            rows = list(_rows(path, lines, text_column, label_column))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start} of a block)"
        ) from error
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


def infer_labels(path: Path, rows: Sequence[Row]) -> tuple[str, ...]:
    """The labels that occur, numbers by value and text by alphabet; the position is the label's id.

    Raises:
        DataError: Fewer than two.
    """
    found = {row.label for row in rows}
    if len(found) < 2:
        raise DataError(
            f"{path}: every row has the label {rows[0].label!r}; classification needs two or more"
        )
    numbers = all(label.lstrip("-").isdecimal() for label in found)
    return tuple(sorted(found, key=int) if numbers else sorted(found))


def label_ids(path: Path, rows: Sequence[Row], labels: Sequence[str]) -> list[int]:
    """The id of each row's label.

    Raises:
        DataError: A label that the training data does not have, with its line.
    """
    ids = {label: i for i, label in enumerate(labels)}
    for row in rows:
        if row.label not in ids:
            raise DataError(
                f"{path}:{row.line}: the label {row.label!r} does not occur in the training data, which has "
                f"{_listed(labels)}"
            )
    return [ids[row.label] for row in rows]


def _rows(path: Path, lines: Iterator[str], text_column: str, label_column: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: a row must be a JSON object, not {_short(value)}")
        text = _column(value, text_column, "data.text", where)
        label = _column(value, label_column, "data.label", where)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: {text_column!r} must be text that is not blank, not {_short(text)}")
        if not isinstance(label, str | int) or label == "":
            raise DataError(
                f"{where}: {label_column!r} must be text, a whole number, true or false, not {_short(label)}"
            )
        yield Row(number, text, _label_name(label))


def _label_name(label: str | int) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _column(row: dict[str, Any], name: str, key: str, where: str) -> Any:
    if name not in row:
        raise DataError(
            f"{where}: no {name!r}; the row has {_listed(list(row))} ({key} in the config names it)"
        )
    return row[name]


def _listed(names: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(repr(name) for name in names[:limit]) or "nothing") + more


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "..."
