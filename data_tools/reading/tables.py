"""Parquet files, by row groups: only the columns that are needed are read, a few rows at a time.

A row group belongs to the range of bytes in which it begins, so a file is cut without being opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.documents import BadRecord, Document, ReadCounts
from data_tools.errors import DataError
from data_tools.reading.inputs import Chunk, ReadOptions
from data_tools.reading.records import bad_record, decode_text, name_of, tokens_of_array
from data_tools.reading.remote import REQUEST_BYTES
from data_tools.reading.sources import open_seekable

_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20


def read_parquet(chunk: Chunk, options: ReadOptions, counts: ReadCounts) -> Iterator[Document | BadRecord]:
    """Yield the documents and bad rows of the row groups that begin in the chunk; positions are row numbers.

    Raises:
        DataError: the file is damaged, or has not the columns.
    """
    path = chunk.file.url
    try:
        buffer = REQUEST_BYTES if chunk.file.remote else _BUFFER_BYTES
        # pre_buffer, which is the default, would read whole row groups ahead and hold them.
        with (
            open_seekable(chunk.file) as file,
            pq.ParquetFile(file, buffer_size=buffer, pre_buffer=False) as table,
        ):
            columns = _columns(table.schema_arrow, options, path)
            for group, first_row in _groups(table.metadata, chunk):
                batches = table.iter_batches(_BATCH_ROWS, [group], columns, use_threads=False)
                yield from _read_rows(batches, first_row, path, options, counts)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged or no parquet file: {error}") from error


def _columns(schema: pa.Schema, options: ReadOptions, path: str) -> list[str]:
    """The columns to read, the one of the content first."""
    wanted = options.token_key or options.text_key
    if schema.names.count(wanted) != 1:
        names = ", ".join(schema.names[:8])
        raise DataError(f'{path}: not one column "{wanted}" (columns: {names}): set the text or token key')
    kind = schema.field(wanted).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if options.token_key:
        fits = _is_list(kind) and pa.types.is_integer(kind.value_type)
    else:
        fits = any(test(value) for test in _TEXT_TYPES)
    if not fits:
        expected = "a list of integers" if options.token_key else "text"
        raise DataError(f'{path}: column "{wanted}" is {kind}, not {expected}')
    others = dict.fromkeys((options.id_key, options.source_key))
    return [wanted, *(name for name in others if name in schema.names and name != wanted)]


_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
)


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _groups(metadata: pq.FileMetaData, chunk: Chunk) -> Iterator[tuple[int, int]]:
    """Number and first row of the row groups that begin in the chunk."""
    first_row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        column = group.column(0)
        # Some writers leave 0 for "no dictionary"; a wild offset must not make the group nobody's.
        begin = min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset)
        if chunk.start <= min(max(begin, 0), chunk.file.size - 1) < chunk.stop:
            yield number, first_row
        first_row += group.num_rows


class _Fault(NamedTuple):
    """Why a row holds no document."""

    reason: str


def _read_rows(
    batches: Iterator[pa.RecordBatch], row: int, path: str, options: ReadOptions, counts: ReadCounts
) -> Iterator[Document | BadRecord]:
    key = options.token_key or options.text_key
    for batch in batches:
        contents = _token_lists(batch.column(0)) if options.token_key else _texts(batch.column(0))
        names, sources = _names(batch, options.id_key), _names(batch, options.source_key)
        for content, name, source in zip(contents, names, sources, strict=True):
            counts.records += 1
            if isinstance(content, _Fault):
                yield bad_record(counts, path, row, f'column "{key}" {content.reason}', "")
            elif isinstance(content, str):
                if not content or content.isspace():
                    counts.empty += 1
                else:
                    counts.documents += 1
                    yield Document(row, content, name, source)
            elif not content.size:
                counts.empty += 1
            else:
                counts.documents += 1
                yield Document(row, "", name, source, content)
            row += 1


def _texts(column: pa.Array) -> Iterator[str | _Fault]:
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # arrow does not check what it reads
        values = _bytes_of(column)
    for value in values:
        if type(value) is str:
            yield value
        elif value is None:
            yield _Fault("is null")
        else:
            text, reason = decode_text(value)
            yield _Fault(f"is {reason}") if reason else text


def _bytes_of(column: pa.Array) -> list[bytes | None]:
    """The values of a text column of which some are not UTF-8."""
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    values: list[bytes | None] = plain.cast(pa.large_binary()).to_pylist()
    return values


def _token_lists(column: pa.Array) -> Iterator[npt.NDArray[np.uint32] | _Fault]:
    for row in column:
        if not row.is_valid:
            yield _Fault("is null")
        elif row.values.null_count:
            yield _Fault("has nulls in its list")
        else:
            tokens = tokens_of_array(row.values.to_numpy(zero_copy_only=False))
            yield _Fault(f"has {tokens}") if isinstance(tokens, str) else tokens


def _names(batch: pa.RecordBatch, column: str) -> list[str]:
    if column not in batch.schema.names:
        return [""] * batch.num_rows
    try:
        values = batch.column(column).to_pylist()
    except UnicodeDecodeError:
        raw = _bytes_of(batch.column(column))
        return [name_of((value or b"").decode("utf-8", "surrogateescape")) for value in raw]
    return [value if type(value) is str else name_of(value) for value in values]
