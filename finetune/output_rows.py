"""Rows with a column added, as JSON lines: what `predict`, `embed` and `generate` write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from data_tools.errors import DataError


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
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        row = _finite(row)
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, allow_nan=False, default=str).encode() + b"\n"


def _finite(value: Any) -> Any:
    """The value with None in place of numbers that are none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
