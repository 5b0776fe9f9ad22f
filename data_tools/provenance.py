"""The parquet file beside each shard: one row per document, in stored order.

    file        the input: its path below the directory that all local inputs share, or its URL
    position    where the document begins in it (`data_tools.documents.Document`)
    id          what the input calls the document, or ""
    source      what the input says it comes from, or `InputFile.group`
    language    code found by the cleaning, or ""
    tokens      its length in the shard, eod included

Written in row groups of a few thousand rows, so neither writer nor reader needs a whole shard in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_tools.errors import DataError
from data_tools.shard_layout import FileInfo

_SCHEMA = pa.schema(
    [
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("position", pa.uint64()),
        ("id", pa.string()),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("language", pa.dictionary(pa.int32(), pa.string())),
        ("tokens", pa.uint32()),
    ]
)
_ROW_GROUP = 8192


class Origin(NamedTuple):
    """One row."""

    file: str
    position: int
    id: str
    source: str
    language: str
    tokens: int


def provenance_name(shard: str) -> str:
    """Name of the file beside the shard `shard`."""
    return str(Path(shard).with_suffix(".parquet"))


class ProvenanceWriter:
    """Writes one file. Use as a context manager; `info` holds after the exit.

    Attributes:
        info: name, size and hash of the file, named as given.
    """

    info: FileInfo

    def __init__(self, path: Path, name: str) -> None:
        """Begin a file.

        Args:
            path: where to write now.
            name: what the file will be called in its split directory.
        """
        self._path, self._name = path, name
        self._rows: list[Origin] = []
        self._file = path.open("wb")  # given a path, pyarrow takes 0.2 s to look at all its file systems
        self._writer = pq.ParquetWriter(self._file, _SCHEMA, compression="zstd")

    def add(self, origin: Origin) -> None:
        """Append a row."""
        self._rows.append(origin)
        if len(self._rows) >= _ROW_GROUP:
            self._flush()

    def __enter__(self) -> ProvenanceWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if exc_type is None:
                self._flush()
            self._writer.close()
        if exc_type is not None:
            return
        digest = xxhash.xxh3_128()
        with self._path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
            os.fsync(file.fileno())
            size = file.tell()
        self.info = FileInfo(path=self._name, bytes=size, xxh3_128=digest.hexdigest())

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
            self._rows = []


def read_provenance(path: Path) -> Iterator[Origin]:
    """Yield the rows of a file, in order."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            columns = (batch.column(name).to_pylist() for name in Origin._fields)
            yield from (Origin(*row) for row in zip(*columns, strict=True))


def origin_of(path: Path, row: int) -> Origin:
    """Read one row; only its row group is read.

    Raises:
        DataError: the file cannot be read, or has no such row.
    """
    with _open(path) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return Origin(**file.read_row_group(group).slice(row, 1).to_pylist()[0])
            row -= rows
    raise DataError(f"provenance {path} ends early: `headwater data verify` shows what is damaged")


def find_ids(path: Path, document_id: str) -> Iterator[int]:
    """Yield the rows with this id; only the column of ids is read.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow.compute as pc  # takes a while, and preparation does without it

    first = 0
    with _open(path) as file:
        for batch in file.iter_batches(columns=["id"]):
            hits = np.flatnonzero(pc.equal(batch.column("id"), document_id).to_numpy(zero_copy_only=False))
            yield from (first + hits).tolist()
            first += batch.num_rows


@contextlib.contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read the provenance {path}: {error}") from error
