"""numpy arrays of token ids (.npy): a document is a 1-D array of integers, or each row of a 2-D one.

Rows that begin in a chunk belong to it, so a large file is cut into ranges of bytes. Format:
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from data_tools.documents import BadRecord, Document, ReadCounts
from data_tools.errors import DataError
from data_tools.reading import lines as limits
from data_tools.reading.inputs import Chunk, InputFile
from data_tools.reading.records import TOO_LONG, bad_record, tokens_of_array
from data_tools.reading.sources import open_source, read_exactly

_HEADER_BYTES = 16 << 10


class _Array(NamedTuple):
    """Where the rows of an array are in its file."""

    begin: int
    rows: int
    columns: int
    dtype: np.dtype[np.integer[Any]]

    @property
    def row_bytes(self) -> int:
        return self.columns * self.dtype.itemsize


def read_npy(chunk: Chunk, counts: ReadCounts) -> Iterator[Document | BadRecord]:
    """Yield the documents and bad rows that begin in the chunk; positions are row numbers.

    Raises:
        DataError: the file is damaged, or no such array.
    """
    path = chunk.file.url
    array = _header(chunk.file)
    if not array.rows or not array.row_bytes:
        return
    first, last = (
        min(max(0, math.ceil((edge - array.begin) / array.row_bytes)), array.rows)
        for edge in (chunk.start, chunk.stop)
    )
    if first == last:
        return
    with open_source(chunk.file, array.begin + first * array.row_bytes, chunk.stop) as source:
        for row in range(first, last):
            counts.records += 1
            if array.row_bytes > limits.MAX_LINE_BYTES:
                yield bad_record(counts, path, row, f"row is {TOO_LONG}", "")
                return
            tokens = tokens_of_array(np.frombuffer(read_exactly(source, array.row_bytes), array.dtype))
            if isinstance(tokens, str):
                yield bad_record(counts, path, row, tokens, "")
            else:
                counts.documents += 1
                yield Document(row, "", tokens=tokens)


def _header(file: InputFile) -> _Array:
    with open_source(file, 0, _HEADER_BYTES) as source:
        head = io.BytesIO(read_exactly(source, min(file.size, _HEADER_BYTES)))
    try:
        version = np.lib.format.read_magic(head)
        parse = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran_order, dtype = parse(head)
    except ValueError as error:
        raise DataError(f"{file.url} has no readable .npy header: {error}") from error
    if len(shape) not in (1, 2) or dtype.kind not in "iu" or (fortran_order and len(shape) == 2):
        order = " in Fortran order" if fortran_order else ""
        raise DataError(
            f"{file.url} is an array of {dtype} with shape {shape}{order}; wanted are integers in C order, "
            "in one dimension (a document) or two (a document a row)"
        )
    rows, columns = shape if len(shape) == 2 else (1, shape[0])
    array = _Array(head.tell(), rows, columns, dtype)
    if file.size != array.begin + rows * array.row_bytes:
        expected = array.begin + rows * array.row_bytes
        raise DataError(f"{file.url} has {file.size} bytes, its header says {expected}: it is damaged")
    return array
