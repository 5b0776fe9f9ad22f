"""First half of `prepare`: documents into buckets, by hash.

A bucket becomes one shard. Buckets are ranges of a document's order key, a 128-bit hash, and each is
sorted by that key later: together a global shuffle, of a corpus of any size, that depends on the
inputs and the seed only, never on the number of workers.

Each input chunk leaves one spill file with its documents grouped by bucket, and the byte where each
group begins. So the number of open files and the memory do not grow with the corpus.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from data_tools.jsonl import BadLine, Chunk, Document, LineCounts, chunk_digest, read_chunk

_RECORD = struct.Struct("<16sI")  # order key (big endian, so that bytes sort as numbers), bytes of text
_SPLIT_SEED = 0x5EED  # fixed: a document's split does not change with the shuffle


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """How many buckets each split has; validation buckets are numbered after the train buckets."""

    train: int
    validation: int
    validation_fraction: float

    @property
    def total(self) -> int:
        """Number of buckets."""
        return self.train + self.validation

    def by_split(self) -> tuple[range, range]:
        """Bucket numbers of train and of validation."""
        return range(self.train), range(self.train, self.total)

    def of(self, text: bytes, order_key: bytes) -> int:
        """Bucket of a document.

        The split depends on the text alone, so copies of a document never lie on both sides.
        """
        high = int.from_bytes(order_key[:8], "big")
        if xxhash.xxh3_64_intdigest(text, seed=_SPLIT_SEED) < self.validation_fraction * 2**64:
            return self.train + (high * self.validation >> 64)
        return high * self.train >> 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterTask:
    """One input chunk to scatter into `spill`."""

    chunk: Chunk
    spill: Path
    json_key: str
    seed: int
    buckets: Buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class Spill:
    """A chunk's documents grouped by bucket.

    Attributes:
        path: the file.
        offsets: byte where each bucket's group begins, and the end of the file: [buckets + 1].
        digest: xxh3_128 of the input chunk.
        counts: lines and documents of the chunk.
        bad_lines: its bad lines, numbered from 1 in the chunk.
    """

    path: Path
    offsets: tuple[int, ...]
    digest: bytes
    counts: LineCounts = field(default_factory=LineCounts)
    bad_lines: tuple[BadLine, ...] = ()


def order_key(document: Document, text: bytes, file_index: int, seed: int) -> bytes:
    """Place of a document in the global shuffle.

    Text and position both enter: copies of one document end up far apart, not side by side.
    """
    position = struct.pack("<IQ", file_index, document.offset)
    return xxhash.xxh3_128_digest(xxhash.xxh3_128_digest(text) + position, seed=seed)


def scatter(task: ScatterTask) -> Spill:
    """Read one chunk and write its spill file.

    Raises:
        DataError: the input cannot be read.
    """
    groups: list[list[bytes]] = [[] for _ in range(task.buckets.total)]
    counts = LineCounts()
    bad_lines: list[BadLine] = []
    for item in read_chunk(task.chunk, task.json_key, counts):
        if isinstance(item, BadLine):
            bad_lines.append(item)
            continue
        text = item.text.encode()
        key = order_key(item, text, task.chunk.file_index, task.seed)
        groups[task.buckets.of(text, key)] += (_RECORD.pack(key, len(text)), text)
    offsets = [0]
    with task.spill.open("wb") as file:
        for group in groups:
            file.writelines(group)
            offsets.append(file.tell())
    return Spill(
        path=task.spill,
        offsets=tuple(offsets),
        digest=chunk_digest(task.chunk),
        counts=counts,
        bad_lines=tuple(bad_lines),
    )


def read_bucket(pieces: Sequence[tuple[Path, int, int]]) -> Iterator[str]:
    """Texts of one bucket in their final order.

    Args:
        pieces: (spill file, start, stop) of the bucket's group in each spill file that has one.
    """
    data = bytearray()
    for path, start, stop in pieces:
        with path.open("rb") as file:
            file.seek(start)
            data += file.read(stop - start)
    index: list[tuple[bytes, int, int]] = []
    position = 0
    while position < len(data):
        key, length = _RECORD.unpack_from(data, position)
        position += _RECORD.size
        index.append((key, position, length))
        position += length
    index.sort()
    for _, begin, length in index:
        yield data[begin : begin + length].decode()
