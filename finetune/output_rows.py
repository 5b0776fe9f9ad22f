"""Rows with a column added, as JSON lines: what `predict`, `embed` and `generate` write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_tools.errors import DataError
from data_tools.plain_json import to_json


def require_free(where: str, fields: Mapping[str, Any], column: str) -> None:
    """Refuse a row that has the column that is to be added, so that nothing of the input is lost.

    Args:
        where: The row's place, for the error.
        fields: The row.
        column: The name of the column.

    Raises:
        DataError: The row has such a column.
    """
    if column in fields:
        raise DataError(
            f"{where}: has a column {column!r} already, which the answer would replace; rename or remove it"
        )


def output_line(fields: Mapping[str, Any], column: str, value: object) -> bytes:
    """A row with a column added, as a line of JSON in UTF-8 that every reader takes.

    NaN and infinities, which JSON has not, become null, as pandas writes them. A row with half a character
    (a lone surrogate), which UTF-8 has not, is written in ASCII with escapes, as it was read.

    Args:
        fields: The row, as it was read.
        column: Name of the column; the row has none of it.
        value: What to write there.
    """
    row = {**fields, column: value}
    text = to_json(row, default=str)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return to_json(row, ensure_ascii=True, default=str).encode() + b"\n"
