"""The training data of one data-parallel rank: an iterator whose whole state is a count.

    stream = open_stream(config, "train", data_parallel_rank, data_parallel_size)
    for micro_batches in stream:          # one optimizer step
        ...
        state = stream.state_dict()       # the same on every rank; load it at any data-parallel size

Global batch number g is the samples [g * global_batch_size, (g + 1) * global_batch_size) of the computed
order; rank r of n reads the r-th of n equal parts. So the world size is no part of the state.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import DataError
from pretrain.config.errors import ConfigError
from pretrain.config.schema import RunConfig
from pretrain.data.feed import Feed, Split, open_feed
from pretrain.data.objectives import MicroBatch
from pretrain.data.philox import I64
from pretrain.data.prefetch import Prefetcher

STATE_FORMAT = 1
"""Raised whenever the same state would mean other samples: order, cutting, masking."""
PREFETCH_STEPS = 2
LOCATE_SAMPLES = 4096  # samples located at once: numpy's cost per call is that of thousands of elements
CACHE_DIRECTORY = "data_cache"

Step = list[MicroBatch]


@dataclass(frozen=True, slots=True)
class RankPlan:
    """Which samples of each global batch one data rank reads.

    Attributes:
        global_batch_size, micro_batch_size: in samples.
        rank, size: data-parallel rank and number of ranks.
    """

    global_batch_size: int
    micro_batch_size: int
    rank: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"data_parallel_rank {self.rank} is outside 0..{self.size - 1}")
        if self.global_batch_size % (self.micro_batch_size * self.size):
            raise ConfigError(
                f"batch.global_batch_size: {self.global_batch_size} is not a multiple of "
                f"batch.micro_batch_size x data-parallel size = {self.micro_batch_size} x {self.size}"
            )

    @property
    def samples(self) -> int:
        """Samples that this rank reads in one step."""
        return self.global_batch_size // self.size

    def numbers(self, consumed_samples: int, steps: int) -> I64:
        """[steps * samples] global sample numbers of this rank in the next steps."""
        first = consumed_samples + self.rank * self.samples
        step = first + self.global_batch_size * np.arange(steps)
        return (step[:, None] + np.arange(self.samples)).ravel()


def steps_from(feed: Feed, plan: RankPlan, consumed_samples: int) -> Iterator[Step]:
    """The optimizer steps of one rank from a cursor on, without end."""
    steps = max(1, LOCATE_SAMPLES // plan.samples)
    while True:
        located = feed.locate(plan.numbers(consumed_samples, steps))
        for step in range(steps):
            begin = step * plan.samples
            yield [
                feed.micro_batch(located.take(slice(at, at + plan.micro_batch_size)))
                for at in range(begin, begin + plan.samples, plan.micro_batch_size)
            ]
        consumed_samples += steps * plan.global_batch_size


class Stream:
    """Iterator over optimizer steps; each is a list of gradient_accumulation_steps micro-batches.

    Attributes:
        consumed_samples: samples of all ranks in the steps handed out; what is prefetched does not count.
    """

    def __init__(self, feed: Feed, plan: RankPlan, identity: dict[str, Any]) -> None:
        """Wrap a feed; use `open_stream`.

        Args:
            feed: the samples; the stream closes it.
            plan: the share of this rank.
            identity: what a state must agree with to be loaded, JSON-able.
        """
        self.consumed_samples = 0
        self._feed, self._plan, self._identity = feed, plan, identity
        self._prefetcher: Prefetcher[Step] | None = None
        self._stop_prefetcher = weakref.finalize(self, lambda: None)
        self._closed = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Step:
        if self._closed:
            raise ValueError("the stream is closed")
        if self._prefetcher is None:
            steps = steps_from(self._feed, self._plan, self.consumed_samples)
            self._prefetcher = Prefetcher(steps, PREFETCH_STEPS)
            self._stop_prefetcher = weakref.finalize(self, self._prefetcher.stop)
        step = self._prefetcher.get()
        self.consumed_samples += self._plan.global_batch_size
        return step

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def epochs(self) -> dict[str, float]:
        """Passes over each corpus so far, by name."""
        passes = self._feed.mixture.consumed(self.consumed_samples) / self._feed.sizes
        return {corpus.config.name: float(n) for corpus, n in zip(self._feed.corpora, passes, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Position after the steps handed out so far: small, JSON-able, the same on every rank."""
        return {**self._identity, "consumed_samples": self.consumed_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the position of a state; costs nothing, wherever it is.

        Data-parallel size, micro_batch_size and global_batch_size may differ from those of the saved run.

        Raises:
            DataError: the state belongs to other data, or to other settings that decide on the order.
        """
        for name, ours in self._identity.items():
            theirs = state.get(name)
            if theirs != ours:
                raise DataError(f"cannot continue the data stream: {name} is {_difference(ours, theirs)}")
        consumed = state.get("consumed_samples")
        if not isinstance(consumed, int) or consumed < 0:
            raise DataError(f"cannot continue the data stream: consumed_samples is {consumed!r}")
        self._end_prefetch()
        self.consumed_samples = consumed

    def close(self) -> None:
        """Stop the thread and close the shards. May be called twice."""
        self._end_prefetch()
        self._feed.close()
        self._closed = True

    def _end_prefetch(self) -> None:
        self._stop_prefetcher()
        self._prefetcher = None


def open_stream(
    config: RunConfig,
    split: Split,
    data_parallel_rank: int,
    data_parallel_size: int,
    cache: Path | None = None,
) -> Stream:
    """Open the data of a run at its beginning.

    Args:
        config: the run.
        split: "train" is shuffled and mixed; "validation" comes in storage order.
        data_parallel_rank: which part of each global batch to read.
        data_parallel_size: number of parts.
        cache: directory for indexes that take a while to build; `run_dir`/data_cache where None.

    Raises:
        ConfigError: global_batch_size does not divide among the ranks.
        DataError: shards are missing, damaged, or made with another tokenizer.
    """
    plan = _rank_plan(config, data_parallel_rank, data_parallel_size)
    feed = open_feed(config, split, cache or Path(config.run_dir) / CACHE_DIRECTORY)
    return Stream(feed, plan, _identity(config, split, feed))


def eval_batches(
    config: RunConfig, data_parallel_rank: int, data_parallel_size: int, cache: Path | None = None
) -> list[Step]:
    """The validation set of a rank: always the same samples with the same masks, whatever the seed.

    It is the first `training.eval_samples` samples of the validation split in storage order, or all of them
    where there are fewer, in whole global batches. A split smaller than one global batch repeats to fill it.

    Args:
        config: the run.
        data_parallel_rank: which part of each global batch to read.
        data_parallel_size: number of parts.
        cache: as in `open_stream`.

    Raises:
        ConfigError: global_batch_size does not divide among the ranks.
        DataError: there is no validation split, or its shards are damaged.
    """
    plan = _rank_plan(config, data_parallel_rank, data_parallel_size)
    feed = open_feed(config, "validation", cache or Path(config.run_dir) / CACHE_DIRECTORY)
    try:
        samples = min(config.training.eval_samples, feed.mixture.samples_before_repeat(feed.sizes))
        steps = steps_from(feed, plan, 0)
        return [next(steps) for _ in range(max(1, samples // plan.global_batch_size))]
    finally:
        feed.close()


def _rank_plan(config: RunConfig, rank: int, size: int) -> RankPlan:
    return RankPlan(config.batch.global_batch_size, config.batch.micro_batch_size, rank, size)


def _identity(config: RunConfig, split: Split, feed: Feed) -> dict[str, Any]:
    """What decides on the order and content of samples; a state of anything else must not be loaded."""
    return {
        "format": STATE_FORMAT,
        "kind": config.model.kind,
        "split": split,
        "seed": config.seed,
        "seq_length": config.batch.seq_length,
        "manifests": {corpus.config.name: corpus.reader.manifest.hash for corpus in feed.corpora},
        "weights": {corpus.config.name: corpus.config.weight for corpus in feed.corpora},
        "samples": {corpus.config.name: corpus.samples.count for corpus in feed.corpora},
    }


def _difference(ours: object, theirs: object) -> str:
    """The part of two values that differs, in words."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        name = min(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        return f"{ours.get(name)!r} for {name!r} in this run, {theirs.get(name)!r} in the saved state"
    return f"{ours!r} in this run, {theirs!r} in the saved state"
