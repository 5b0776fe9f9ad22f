"""A bounded, deterministic sample of the documents of a corpus, without reading more of it than needed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash

from data_tools.documents import BadRecord, ReadCounts
from data_tools.errors import DataError
from data_tools.progress import Progress
from data_tools.reading import (
    Chunk,
    InputFile,
    Intake,
    ReadOptions,
    check_fraction,
    plan_chunks,
    read_chunk,
)

_SEEN_FACTOR = 4
_CHUNKS = 256
_MOST_CHUNKS = 1 << 20


@dataclass(frozen=True, slots=True)
class TextSample:
    """Documents of a corpus.

    Attributes:
        texts: in the order of the inputs.
        hashes: `text_hash` of each.
        bytes: of the texts, in UTF-8.
        counts: what was read for it.
        whole: every chunk was read, so `counts` are those of the corpus.
    """

    texts: list[str]
    hashes: list[int]
    bytes: int
    counts: ReadCounts
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """How much to draw, and from what.

    Attributes:
        read: how inputs are read.
        max_bytes: of text in the sample. At most four times as much is read, and one chunk more.
        seed: selects documents and chunks.
        max_bad_fraction: of the records that are read.
    """

    read: ReadOptions
    max_bytes: int
    seed: int
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        check_fraction(self.max_bad_fraction)


def sample_chunks(files: Sequence[InputFile], options: SampleOptions) -> list[Chunk]:
    """Cut the inputs so small that a sample meets a few hundred places of them."""
    wanted = _SEEN_FACTOR * options.max_bytes // _CHUNKS
    total = sum(file.size for file in files)
    return plan_chunks(files, options.read, max(wanted, total // _MOST_CHUNKS, 1 << 16))


def draw_sample(chunks: Sequence[Chunk], options: SampleOptions) -> TextSample:
    """Read chunks in random order until four times the sample was seen; keep the documents of smallest hash.

    Memory: the sample's text, and one document. What is drawn depends on inputs, options and seed only.

    Raises:
        DataError: too many bad records, documents without text, or none at all.
    """
    kept = _SmallestHashes(options)
    read: list[tuple[int, ReadCounts, BadRecord | None]] = []
    goal = _SEEN_FACTOR * options.max_bytes
    seen = 0
    with Progress("read", sum(chunk.cost for chunk in chunks)) as progress:
        for index in _shuffled(chunks, options.seed):
            counts, first_bad = ReadCounts(), None
            for item in read_chunk(chunks[index], options.read, counts):
                if isinstance(item, BadRecord):
                    first_bad = first_bad or item
                    continue
                if item.tokens is not None:
                    raise DataError(f"{chunks[index].file.url}: its documents are token ids, not text")
                seen += kept.offer((index, item.position), item.text)
            read.append((index, counts, first_bad))
            progress.add(chunks[index].cost, counts.documents)
            if seen >= goal:
                break
    whole = len(read) == len(chunks)
    counts = _check_intake(chunks, sorted(read, key=lambda entry: entry[0]), whole, options.max_bad_fraction)
    if not counts.documents:
        raise DataError(f"the corpus is empty: no document in {chunks[0].file.url}")
    return kept.sample(counts, whole)


def text_hash(text: str, seed: int) -> int:
    """What a document is drawn by: uniform in 64 bits."""
    return xxhash.xxh3_64_intdigest(text.encode(), seed=seed)


class _SmallestHashes:
    """Keeps the documents of smallest hash that fit into the sample: the same ones in whatever order."""

    def __init__(self, options: SampleOptions) -> None:
        self._options = options
        self._heap: list[tuple[int, tuple[int, int], int, str]] = []  # largest hash first
        self._bytes = 0

    def offer(self, place: tuple[int, int], text: str) -> int:
        """Consider a document; returns its size in bytes."""
        size = len(text.encode())
        heapq.heappush(self._heap, (-text_hash(text, self._options.seed), place, size, text))
        self._bytes += size
        while len(self._heap) > 1 and self._bytes - self._heap[0][2] >= self._options.max_bytes:
            self._bytes -= heapq.heappop(self._heap)[2]
        return size

    def sample(self, counts: ReadCounts, whole: bool) -> TextSample:
        """What was kept, in the order of the inputs."""
        ordered = sorted(self._heap, key=lambda entry: entry[1])
        return TextSample(
            texts=[text for *_, text in ordered],
            hashes=[-negative for negative, *_ in ordered],
            bytes=self._bytes,
            counts=counts,
            whole=whole,
        )


def _shuffled(chunks: Sequence[Chunk], seed: int) -> Iterator[int]:
    """The numbers of the chunks in a random order that depends on their places only."""
    places = (f"{chunk.file_index} {chunk.start}".encode() for chunk in chunks)
    order = sorted((xxhash.xxh3_64_intdigest(place, seed=seed), i) for i, place in enumerate(places))
    return (index for _, index in order)


def _check_intake(
    chunks: Sequence[Chunk],
    read: Sequence[tuple[int, ReadCounts, BadRecord | None]],
    whole: bool,
    max_bad_fraction: float,
) -> ReadCounts:
    """Add up what was read, in order.

    Raises:
        DataError: too many bad records; names the first, by its number only where that is known.
    """
    intake = Intake()
    for index, counts, first_bad in read:
        intake.add(chunks[index], counts, first_bad)
    if whole:
        intake.check(max_bad_fraction)
    elif (first := intake.first_bad) and intake.counts.bad > max_bad_fraction * intake.counts.records:
        raise DataError(
            f"{intake.counts.bad} of {intake.counts.records} records hold no document, more than "
            f"--max-bad-fraction {max_bad_fraction:g}; the first is at byte or row {first.position} of "
            f"{first.path}: {first.reason}"
        )
    return intake.counts
