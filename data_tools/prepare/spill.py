"""Spill files: documents between reading and tokenising, grouped by bucket.

A bucket is a range of order keys, 128-bit hashes; each is sorted by that key later. Together that is a global
shuffle, of a corpus of any size, that depends on inputs and seed only, never on the number of tasks.

A file consists of segments, each with its documents grouped by bucket. An index beside it has a row for each
segment: where each group begins, and its hash. So neither memory nor the number of open files grows with the
corpus.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from data_tools.prepare.options import Sizes

_SPLIT_SEED = 0x5EED  # fixed: a document's split does not change with the shuffle
# order key (sorts as bytes), file index, position, lengths of id, source, language and payload
_RECORD = struct.Struct("<16sIQHHBI")
_LONGEST_FIELD = 0xFFFF

_INDEX_DTYPE = np.dtype([("offset", "<i8"), ("xxh3", "<u8")])
Index = npt.NDArray[np.void]


class SpillRecord(NamedTuple):
    """A document: `payload` is its text in UTF-8, or its tokens as little endian uint32."""

    key: bytes
    file_index: int
    position: int
    id: bytes
    source: bytes
    language: bytes
    payload: bytes


def order_key(content: bytes, file_index: int, position: int, seed: int) -> bytes:
    """[16 bytes] place of a document in the global shuffle; no two documents share one.

    Content and position both enter: copies of one document end up far apart, not side by side.
    """
    place = struct.pack("<IQ", file_index, position)
    return xxhash.xxh3_128_digest(xxhash.xxh3_128_digest(content) + place, seed=seed)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Which bucket a document belongs to."""

    sizes: Sizes
    validation_fraction: float

    def of(self, content: bytes, key: bytes) -> int:
        """Bucket of a document; its split depends on the content alone, so copies never lie on both sides."""
        sizes = self.sizes
        train = sizes.train_shards * sizes.buckets_per_shard
        high = int.from_bytes(key[:8], "big")
        if self.validation_fraction and self._is_validation(content):
            return train + (high * (sizes.buckets - train) >> 64)
        return high * train >> 64

    def _is_validation(self, content: bytes) -> bool:
        return xxhash.xxh3_64_intdigest(content, seed=_SPLIT_SEED) < self.validation_fraction * 2**64


class SpillWriter:
    """Writes a spill file and its index. Keeps about `segment_bytes` of text in memory. A context manager."""

    def __init__(self, path: Path, index: Path, buckets: int, segment_bytes: int) -> None:
        self._segment_bytes = segment_bytes
        self._file, self._index = path.open("wb"), index.open("wb")
        self._groups: list[list[bytes]] = [[] for _ in range(buckets)]
        self._held = 0

    def __enter__(self) -> SpillWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        with self._file, self._index:
            if exc_type is None:
                self._flush()

    def add(self, bucket: int, record: SpillRecord) -> None:
        """Add a document."""
        key, file_index, position, *fields, payload = record
        name, source, language = (_cut(field) for field in fields)
        head = _RECORD.pack(
            key, file_index, position, len(name), len(source), min(len(language), 0xFF), len(payload)
        )
        self._groups[bucket] += (head, name, source, language[:0xFF], payload)
        self._held += len(head) + len(name) + len(payload)
        if self._held >= self._segment_bytes:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        row = np.zeros(len(self._groups) + 1, dtype=_INDEX_DTYPE)
        for place, group in enumerate(self._groups):
            data = b"".join(group)
            row[place] = (self._file.tell(), xxhash.xxh3_64_intdigest(data))
            self._file.write(data)
            group.clear()
        row[-1] = (self._file.tell(), 0)
        self._index.write(row.tobytes())
        self._held = 0


class Spills:
    """Some buckets in all spill files of a corpus, to read one by one."""

    def __init__(self, files: Sequence[tuple[Path, Path]], chosen: range, buckets: int) -> None:
        """Look up where the buckets are.

        Args:
            files: (spill file, its index).
            chosen: numbers of the buckets that will be asked for.
            buckets: number of all buckets.
        """
        self._first = chosen.start
        self._files = [(path, _load_index(index, chosen, buckets)) for path, index in files]

    def bucket(self, number: int) -> list[SpillRecord]:
        """The documents of one bucket, in their final order.

        Raises:
            DataError: a file is damaged.
        """
        records: list[SpillRecord] = []
        place = number - self._first
        for path, index in self._files:
            groups = index[:, place : place + 2]
            if np.array_equal(groups["offset"][:, 0], groups["offset"][:, 1]):
                continue
            with path.open("rb", buffering=0) as file:
                for (start, digest), (stop, _) in groups.tolist():
                    file.seek(start)
                    data = file.read(stop - start)
                    if xxhash.xxh3_64_intdigest(data) != digest:
                        raise DataError(
                            f"{path} is damaged: remove {path.with_suffix('.json')} and run the command again"
                        )
                    records += _parse(data)
        records.sort(key=_key_of)
        return records


def _load_index(path: Path, chosen: range, buckets: int) -> Index:
    """[segments, chosen + 1] offsets and hashes of some of the groups of a spill file."""
    segments, rest = divmod(path.stat().st_size, (buckets + 1) * _INDEX_DTYPE.itemsize)
    if rest:
        record = path.name.split(".")[0] + ".json"
        raise DataError(f"{path} is damaged: remove {record} beside it and run the command again")
    if not segments:
        return np.empty((0, len(chosen) + 1), dtype=_INDEX_DTYPE)
    # Mapped, not read: the whole index of a terabyte would fill the memory of every task.
    index = np.memmap(path, dtype=_INDEX_DTYPE, mode="r", shape=(segments, buckets + 1))
    return np.array(index[:, chosen.start : chosen.stop + 1])


def _cut(field: bytes) -> bytes:
    """As much of a text as a record has room for."""
    return (
        field if len(field) <= _LONGEST_FIELD else field[:_LONGEST_FIELD].decode("utf-8", "ignore").encode()
    )


def _parse(data: bytes) -> Iterator[SpillRecord]:
    position, size = 0, _RECORD.size
    while position < len(data):
        key, file_index, place, name, source, language, payload = _RECORD.unpack_from(data, position)
        begin = position + size
        ends = (begin + name, begin + name + source, begin + name + source + language)
        position = ends[2] + payload
        yield SpillRecord(
            key,
            file_index,
            place,
            data[begin : ends[0]],
            data[ends[0] : ends[1]],
            data[ends[1] : ends[2]],
            data[ends[2] : position],
        )


def _key_of(record: SpillRecord) -> bytes:
    return record.key
