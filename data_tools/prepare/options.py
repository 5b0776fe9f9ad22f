"""What a user may choose about a corpus, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_tools.errors import DataError
from data_tools.reading import InputFile, ReadOptions

_SHARDS_WANTED = 32  # enough that workers share a small corpus evenly
_SMALLEST_SHARD, _LARGEST_SHARD = 4 << 20, 512 << 20  # bytes of text
_TASKS_WANTED = 32
_SMALLEST_TASK, _LARGEST_TASK = 1 << 20, 64 << 20  # bytes of input
_SMALLEST_BUCKET, _LARGEST_BUCKET = 16 << 20, 128 << 20  # bytes of text that are sorted in memory at once
_SMALLEST_SEGMENT, _LARGEST_SEGMENT = 32 << 20, 512 << 20  # bytes of text that a reading task keeps in memory
_SIGNATURE_BYTES = 256 << 20  # bytes of text whose signatures make one partition
_MOST_BUCKETS, _MOST_SEGMENTS, _MOST_PARTITIONS = 1 << 16, 1 << 14, 1 << 10  # a file notes where each begins
_EXPANSION = 4  # bytes of text in a byte of compressed input, about


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What determines a corpus, besides its inputs and its tokenizer."""

    name: str
    """Name of the corpus."""
    read: ReadOptions = field(default_factory=ReadOptions)
    """How the inputs are read."""
    clean: dict[str, Any] | None = None
    """Content of the cleaning file (`data_tools.clean`), or None."""
    sentences: bool = False
    """Record sentence lengths, which BERT needs; GPT reads such a corpus as well."""
    validation_fraction: float = 0.01
    """Share of the documents that go to the validation split, by the hash of their text."""
    seed: int = 1234
    """Shuffles the documents."""
    block_bytes: int = 1 << 20
    """Bytes of tokens in a block, about: a block ends with the document that reaches it."""
    shard_bytes: int | None = None
    """Bytes of text per shard, about; a 32nd of the input by default, within 4 and 512 MiB."""

    def check(self) -> None:
        """Raise a DataError for a value that makes no sense."""
        if not 0.0 <= self.validation_fraction < 1.0:
            raise DataError(f"--validation-fraction must lie in [0, 1), not {self.validation_fraction:g}")
        if not 1 <= self.block_bytes <= 1 << 30:
            raise DataError(f"--block-bytes must lie in [1, {1 << 30}], not {self.block_bytes}")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise DataError(f"--shard-bytes must be positive, not {self.shard_bytes}")
        if not 0 <= self.seed < 1 << 64:
            raise DataError(f"--seed must lie in [0, 2^64), not {self.seed}")

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> PrepareOptions:
        """The inverse of `to_json`."""
        return cls(**{**content, "read": ReadOptions(**content["read"])})


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What does not change the result.

    Attributes:
        index: number of this process, from 0, among those that share the tasks and run at the same time.
        count: number of these processes.
        max_bad_fraction: give up if more of the records hold no document.
        restart: throw unfinished work away that belongs to another plan.
    """

    index: int = 0
    count: int = 1
    max_bad_fraction: float = 0.01
    restart: bool = False

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise DataError(
                f"--task-index counts from 0 and must be less than --task-count, not {self.index} of "
                f"{self.count}"
            )
        if not 0.0 <= self.max_bad_fraction <= 1.0:  # nan neither
            raise DataError(f"--max-bad-fraction must lie in [0, 1], not {self.max_bad_fraction:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Numbers that follow from the options and the size of the inputs.

    A shard is a range of the documents' order keys, cut into equal buckets that are sorted in memory one by
    one. Validation buckets are numbered after the train buckets.

    Attributes:
        task_bytes: input that one reading task takes; no part of the result depends on it.
        segment_bytes: text that a reading task keeps in memory.
        train_shards, validation_shards: at most so many; empty ones are left out.
        buckets_per_shard: parts of a shard.
        partitions: parts in which duplicates are looked for.
    """

    task_bytes: int
    segment_bytes: int
    train_shards: int
    validation_shards: int
    buckets_per_shard: int
    partitions: int

    @property
    def shards(self) -> int:
        """Shards of both splits."""
        return self.train_shards + self.validation_shards

    @property
    def buckets(self) -> int:
        """Buckets of both splits."""
        return self.shards * self.buckets_per_shard


def plan_sizes(files: Sequence[InputFile], options: PrepareOptions) -> Sizes:
    """Derive the sizes; a pure function of its arguments.

    Raises:
        DataError: shards would be too small and too many.

    Up to half a terabyte of text the memory of a task does not depend on its amount: 32 MiB of text in a
    reading task and 16 MiB in a packing task. Beyond, both grow, to 512 and 128 MiB, so that spill files stay
    few and long.
    """
    total = sum(file.size for file in files)
    text = sum(file.size * (_EXPANSION if file.compression else 1) for file in files)
    shard_bytes = options.shard_bytes or _within(text // _SHARDS_WANTED, _SMALLEST_SHARD, _LARGEST_SHARD)
    fraction = options.validation_fraction
    bucket_bytes = _within(text // _MOST_BUCKETS, _SMALLEST_BUCKET, _LARGEST_BUCKET)
    if text // shard_bytes > _MOST_BUCKETS:
        raise DataError(
            f"--shard-bytes {shard_bytes} would make {text // shard_bytes:,} shards: choose at least "
            f"{text // _MOST_BUCKETS + 1}"
        )
    return Sizes(
        task_bytes=_within(total // _TASKS_WANTED, _SMALLEST_TASK, _LARGEST_TASK),
        segment_bytes=_within(text // _MOST_SEGMENTS, _SMALLEST_SEGMENT, _LARGEST_SEGMENT),
        train_shards=max(1, math.ceil(text * (1 - fraction) / shard_bytes)),
        validation_shards=max(1, math.ceil(text * fraction / shard_bytes)),
        buckets_per_shard=max(1, math.ceil(shard_bytes / bucket_bytes)),
        partitions=_within(math.ceil(text / _SIGNATURE_BYTES), 1, _MOST_PARTITIONS),
    )


def _within(value: int, least: int, most: int) -> int:
    return min(max(value, least), most)
