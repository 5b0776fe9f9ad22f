"""Rows of a table with the place that each comes from: jsonl, csv, tsv and parquet, by the file's ending."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.errors import DataError
from data_tools.tokenizer.interface import check_unicode

LARGEST_FIELD = 1 << 30
"""Characters; the csv module's own limit is 128 KiB."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row.

    Attributes:
        where: "file:line", or "file:row N" of a parquet file, counted from 1.
        fields: Value of each column.
    """

    where: str
    fields: dict[str, Any]

    def get(self, column: str, key: str) -> Any:
        """The value of a column.

        Args:
            column: Its name.
            key: Of the config, or the option, that it comes from.

        Raises:
            DataError: The row has no such column, or a text in it is not valid Unicode.
        """
        if column not in self.fields:
            names = list(self.fields)
            hint = _separator_hint(names[0]) if len(names) == 1 and column in _pieces(names[0]) else ""
            raise DataError(
                f"{self.where}: no {column!r}, which {key} asks for; the row has {listed(names)}{hint}"
            )
        value = self.fields[column]
        check_unicode(_texts_in(value), f"{self.where}: {column!r}")  # JSON can escape half a character
        return value

    def text(self, column: str, key: str) -> str:
        """The value of a column that must be text.

        Raises:
            DataError: It is something else, or blank.
        """
        value = self.get(column, key)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{self.where}: {column!r} must be text that is not blank, not {short(value)}")
        return value


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a file; blank lines are skipped.

    Raises:
        DataError: No such file, an ending that is not known, no rows, or a bad row, with its line.
    """
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot tell the format; name it *{', *'.join(FORMATS)}")
    empty = True
    try:
        for record in reader(path):
            empty = False
            yield record
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start} of a block)"
        ) from error
    if empty:
        raise DataError(f"{path}: no rows")


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{where}: not JSON: {error}; the file must have one whole JSON object a line"
                ) from error
            if not isinstance(value, dict):
                raise DataError(f"{where}: a row must be a JSON object, one a line, not {short(value)}")
            yield Record(where, value)


def _csv(path: Path, delimiter: str = ",") -> Iterator[Record]:
    csv.field_size_limit(LARGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        before = 0  # the line that the row before ends in
        try:
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if header is None and row:
                    header = _header(row, where)
                elif header is not None and row:
                    if len(row) != len(header):
                        hint = _separator_hint(header[0]) if len(header) == 1 else ""
                        raise DataError(
                            f"{where}: {len(row)} fields, the header has {len(header)}"
                            f"{hint}{_first_line(before, rows.line_num)}"
                        )
                    yield Record(where, dict(zip(header, row, strict=True)))
                before = rows.line_num
        except csv.Error as error:
            raise DataError(
                f"{path}:{rows.line_num}: not a row: {error}{_first_line(before, rows.line_num)}"
            ) from error


def _first_line(before: int, last: int) -> str:
    """Where a row of several lines begins, for an error: a quote that nobody closed takes in what follows.

    Args:
        before: The line that the row before ends in.
        last: The line that this row ends in.
    """
    return f"; the row begins in line {before + 1}, is a quote open there?" if last > before + 1 else ""


def _header(row: list[str], where: str) -> list[str]:
    twice = sorted({name for name in row if row.count(name) > 1})
    if twice:
        raise DataError(f"{where}: the header has the column {twice[0]!r} twice; rename one")
    return row


def _pieces(name: str) -> list[str]:
    """Names of columns, if this is a header that was read with the wrong separator."""
    return [piece.strip(" \"'") for piece in re.split(r"[,;|\t]", name)]


def _separator_hint(name: str) -> str:
    """What to say of the only column of a table; "" where its name is no header of several columns."""
    if len(_pieces(name)) == 1:
        return ""
    return "; is that the right separator? .csv files have commas, .tsv files tabs"


def _texts_in(value: object) -> Iterator[str]:
    """Texts of a value, also in lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _texts_in(name)
            yield from _texts_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts_in(one)


def _tsv(path: Path) -> Iterator[Record]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[Record]:
    try:
        number = 0
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}:row {number}", row)
    except pa.ArrowException as error:
        raise DataError(f"{path}: no parquet file, or damaged: {error}") from error


FORMATS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
"""Reader by file ending."""


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Names for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(repr(name) for name in names[:limit]) or "nothing") + more


def short(value: object) -> str:
    """The beginning of a value for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:60] + "..."
