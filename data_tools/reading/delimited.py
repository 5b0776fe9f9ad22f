"""csv and tsv with a header row. Quoted fields may hold newlines, so a file is one chunk, however long."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Sequence

from data_tools.documents import BadRecord, Document, ReadCounts
from data_tools.errors import DataError
from data_tools.reading import lines as limits
from data_tools.reading.inputs import ReadOptions
from data_tools.reading.lines import ByteStream, Extent, line_batches
from data_tools.reading.records import TOO_LONG, bad_record, name_of


class _LineFeed:
    """Lines of text with their newlines for the csv module, and where the next one begins.

    Bytes that are not UTF-8 become lone surrogates, which are found again in the one field that matters.
    """

    def __init__(self, stream: ByteStream, extent: Extent) -> None:
        self.position = 0
        self.last = b""
        self._batches = line_batches(stream, extent)
        self._lines: deque[bytes] = deque()

    def __iter__(self) -> _LineFeed:
        return self

    def __next__(self) -> str:
        while not self._lines:
            self.position, lines, too_long = next(self._batches)
            if too_long:
                self.last = lines[0]
                raise csv.Error(f"line is {TOO_LONG}")
            self._lines.extend(lines)
        self.last = self._lines.popleft()
        self.position += len(self.last) + 1
        return self.last.decode("utf-8", "surrogateescape") + "\n"


def read_csv(
    stream: ByteStream, extent: Extent, path: str, options: ReadOptions, counts: ReadCounts
) -> Iterator[Document | BadRecord]:
    """Yield the documents and bad rows of a comma-separated file."""
    return _read_rows(_LineFeed(stream, extent), ",", path, options, counts)


def read_tsv(
    stream: ByteStream, extent: Extent, path: str, options: ReadOptions, counts: ReadCounts
) -> Iterator[Document | BadRecord]:
    """Yield the documents and bad rows of a tab-separated file, quoted as csv is."""
    return _read_rows(_LineFeed(stream, extent), "\t", path, options, counts)


def _read_rows(
    feed: _LineFeed, delimiter: str, path: str, options: ReadOptions, counts: ReadCounts
) -> Iterator[Document | BadRecord]:
    # The limit of the csv module is 128 KiB a field, and for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), limits.MAX_LINE_BYTES))
    rows = csv.reader(feed, delimiter=delimiter, strict=True)
    header = _header(rows, path)
    if not header:
        return
    text_at = _column(header, options.text_key, path)
    if text_at is None:
        names = ", ".join(header[:8])
        raise DataError(f'{path}: no column "{options.text_key}" (columns: {names}): name it with --text-key')
    id_at, source_at = _column(header, options.id_key, path), _column(header, options.source_key, path)
    counts.records += 1
    while True:
        position = feed.position
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # the next row begins at the next line
            counts.records += 1
            yield bad_record(counts, path, position, f"not a row: {error}", feed.last)
            continue
        counts.records += 1
        if not row:
            continue
        if reason := _fault(row, header, text_at):
            yield bad_record(counts, path, position, reason, delimiter.join(row))
        elif not row[text_at] or row[text_at].isspace():
            counts.empty += 1
        else:
            counts.documents += 1
            name, source = ("" if at is None else name_of(row[at]) for at in (id_at, source_at))
            yield Document(position, row[text_at], name, source)


def _header(rows: Iterator[list[str]], path: str) -> list[str]:
    try:
        return next(rows, [])
    except csv.Error as error:
        raise DataError(f"{path}: the first row must hold the names of the columns, but: {error}") from error


def _column(header: Sequence[str], name: str, path: str) -> int | None:
    if header.count(name) > 1:
        raise DataError(f'{path}: {header.count(name)} columns are called "{name}": rename all but one')
    return header.index(name) if name in header else None


def _fault(row: list[str], header: list[str], text_at: int) -> str:
    if len(row) != len(header):
        return f"{len(row)} fields, the header has {len(header)}"
    try:
        row[text_at].encode()
    except UnicodeEncodeError as error:
        return f"not UTF-8 at character {error.start} of the text"
    return ""
