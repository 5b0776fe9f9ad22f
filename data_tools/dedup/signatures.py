"""What deduplication knows about each document: fixed-width records in files, grouped by hash partition.

`prepare` makes one file of records per task over the inputs, and then gathers partition p of all files in one
task: equal hashes always meet there, so partitions can be worked on one by one, anywhere, in any order.

Sizes, with the defaults: an exact record takes 44 bytes, a band record 36, so a document takes 44 bytes with
exact deduplication alone and 548 with near duplicates. `Signatures` holds the records of the documents added
since it was made, and twice that while it writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.dedup.config import DedupConfig
from data_tools.dedup.minhash import BandHasher
from data_tools.errors import DataError

Records = npt.NDArray[np.void]

_DOCUMENT_FIELDS: list[tuple[str, str]] = [("key", "S16"), ("file", "<u4"), ("position", "<u8")]
EXACT_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8"), *_DOCUMENT_FIELDS])
"""Hash of the text in two halves; the document's order key; its rank: number of its file, place in it.

numpy's bytes type hides zero bytes at the end of a key: take keys out with `key_bytes`."""
BAND_DTYPE = np.dtype([("high", "<u8"), *_DOCUMENT_FIELDS])
"""One band's hash, and its document as in `EXACT_DTYPE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offsets:
    """Where the groups of a file of records begin.

    Attributes:
        path: the file.
        exact: [partitions + 1] bytes; partition p of the exact records is exact[p] to exact[p + 1].
        bands: the same of the band records.
    """

    path: Path
    exact: tuple[int, ...]
    bands: tuple[int, ...]


class Signatures:
    """Collects the records of documents and writes them to a file."""

    def __init__(self, config: DedupConfig, partitions: int) -> None:
        self._exact = config.exact
        self._partitions = partitions
        self._hasher = None if config.near is None else BandHasher(config.near)
        self._hashes: list[bytes] = []
        self._documents: list[tuple[bytes, int, int]] = []

    def add(self, text: str, key: bytes, file_index: int, position: int) -> None:
        """Take in a document.

        Args:
            text: its text.
            key: its order key, 16 bytes, of no other document.
            file_index: number of its input file.
            position: its place there; with `file_index` its rank: of equal documents the smallest stays.
        """
        self._documents.append((key, file_index, position))
        if self._exact:
            self._hashes.append(text_hash(text))
        if self._hasher is not None:
            self._hasher.add(text)

    def flush(self, path: Path) -> Offsets:
        """Write the records of all documents added so far to a new file, and forget them."""
        documents = np.array(self._documents, dtype=_DOCUMENT_FIELDS)
        with path.open("wb") as file:
            exact = _write(file, self._exact_records(documents), self._partitions)
            bands = _write(file, self._band_records(documents), self._partitions)
        self._documents, self._hashes = [], []
        return Offsets(path=path, exact=exact, bands=bands)

    def _exact_records(self, documents: Records) -> Records:
        if not self._exact:
            return np.empty(0, dtype=EXACT_DTYPE)
        halves = np.frombuffer(b"".join(self._hashes), dtype=">u8").reshape(-1, 2)
        records = _with_documents(EXACT_DTYPE, documents)
        records["high"], records["low"] = halves[:, 0], halves[:, 1]
        return records

    def _band_records(self, documents: Records) -> Records:
        if self._hasher is None:
            return np.empty(0, dtype=BAND_DTYPE)
        bands, has_words = self._hasher.take()
        records = _with_documents(BAND_DTYPE, np.repeat(documents[has_words], bands.shape[1]))
        records["high"] = bands[has_words].reshape(-1)
        return records


def text_hash(text: str) -> bytes:
    """128-bit hash of a text; runs of white space count as one space, and at the ends for nothing."""
    return xxhash.xxh3_128_digest(" ".join(text.split()).encode())


def read_exact_records(files: Sequence[Offsets], partition: int) -> Records:
    """Gather one partition's `EXACT_DTYPE` records from all files.

    Raises:
        DataError: a file is shorter than its offsets say.
    """
    return _read([(file.path, *file.exact[partition : partition + 2]) for file in files], EXACT_DTYPE)


def read_band_records(files: Sequence[Offsets], partition: int) -> Records:
    """Gather one partition's `BAND_DTYPE` records from all files, as `read_exact_records` does."""
    return _read([(file.path, *file.bands[partition : partition + 2]) for file in files], BAND_DTYPE)


def key_bytes(keys: npt.NDArray[np.bytes_]) -> list[bytes]:
    """The 16-byte keys of an [N] array of type S16; `tolist` would cut zero bytes off their ends."""
    raw = np.ascontiguousarray(keys).tobytes()
    return [raw[start : start + 16] for start in range(0, len(raw), 16)]


def _with_documents(dtype: np.dtype[Any], documents: Records) -> Records:
    records: Records = np.empty(len(documents), dtype=dtype)
    for name, _ in _DOCUMENT_FIELDS:
        records[name] = documents[name]
    return records


def _write(file: Any, records: Records, partitions: int) -> tuple[int, ...]:
    """Append records grouped by partition; returns where each group begins, and the end."""
    partition = (records["high"] >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)
    start = file.tell()
    file.write(records[np.argsort(partition, kind="stable")].tobytes())
    sizes = np.bincount(partition.astype(np.int64), minlength=partitions) * records.dtype.itemsize
    return (start, *(start + np.cumsum(sizes)).tolist())


def _read(pieces: Sequence[tuple[Any, ...]], dtype: np.dtype[Any]) -> Records:
    data = bytearray()
    for path, start, stop in pieces:
        with open(path, "rb") as file:
            file.seek(start)
            data += file.read(stop - start)
    if len(data) != sum(stop - start for _, start, stop in pieces):
        raise DataError(
            f"records of duplicates beside {pieces[0][0]} end early: remove the work directory, run again"
        )
    return np.frombuffer(data, dtype=dtype)
