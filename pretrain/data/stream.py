"""The training data of one data-parallel rank: an iterator whose whole state is a count.

    stream = open_stream(config, "train", data_parallel_rank, data_parallel_size)
    for micro_batches in stream:          # one optimizer step
        ...
        state = stream.state_dict()       # the same on every rank; load it at any data-parallel size

The samples of a training have an order that does not depend on ranks, batch sizes or stops. A step takes the
next global_batch_size of them; rank r of n reads the r-th of n equal parts. What a training reads may change
when it goes on (other weights, corpora, seq_length): then the state gets one more phase.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.config.schema import RunConfig
from pretrain.data.feed import Feed, Located, Split
from pretrain.data.objectives import MicroBatch
from pretrain.data.opening import open_feed
from pretrain.data.prefetch import Prefetcher
from pretrain.data.settings import StreamConfig
from pretrain.data.skip import SKIPPED_DIRECTORY, SkipLog
from pretrain.data.state import StreamState, initial_state
from pretrain.data.steps import RankPlan, StepTable

LOCATE_STEPS = 64
LOCATE_SAMPLES = 4096  # samples located at once: numpy's cost per call is that of thousands of elements

WANT_STEPS = 4
"""Steps that remote corpora fetch ahead of the one being made."""

Step = list[MicroBatch]


def steps_from(feed: Feed, table: StepTable, plan: RankPlan, consumed_samples: int) -> Iterator[Step]:
    """The optimizer steps of one rank from a cursor on, without end.

    Args:
        feed: the samples.
        table: sizes of the steps; that of `plan` is not looked at.
        plan: the rank.
        consumed_samples: where a step begins.
    """
    ahead: deque[Located] = deque()
    for located in _located_steps(feed, table, plan, consumed_samples):
        feed.want(located)
        ahead.append(located)
        if len(ahead) > WANT_STEPS:
            yield feed.micro_batches(ahead.popleft(), plan.micro_batch_size)


def _located_steps(feed: Feed, table: StepTable, plan: RankPlan, consumed_samples: int) -> Iterator[Located]:
    """Where the samples of each of those steps lie."""
    while True:
        stage, left = table.stage_of_sample(consumed_samples)
        plan = replace(plan, global_batch_size=stage.size)
        steps = min(max(1, LOCATE_SAMPLES // plan.samples), LOCATE_STEPS)
        steps = steps if left is None else min(steps, left)
        located = feed.locate(plan.numbers(consumed_samples, steps))
        for begin in range(0, steps * plan.samples, plan.samples):
            yield located.take(begin, begin + plan.samples)
        consumed_samples += steps * plan.global_batch_size


class Stream:
    """Iterator over optimizer steps; each is a list of gradient_accumulation_steps micro-batches.

    Attributes:
        consumed_samples: samples of all ranks in the steps handed out; what is prefetched does not count.
    """

    def __init__(self, feed: Feed, plan: RankPlan, state: StreamState, prefetch_steps: int) -> None:
        """Wrap a feed; use `open_stream`.

        Args:
            feed: the samples at the start of a training; the stream closes it.
            plan: the share of this rank.
            state: that of a training which begins with this feed.
            prefetch_steps: steps made ahead in a thread; 0 for none.
        """
        self.consumed_samples = 0
        self._feed, self._plan, self._state, self._fresh = feed, plan, state, state
        self._table = state.step_table()  # checked when it is used: a state may lie past the ramp
        self._prefetch_steps = prefetch_steps
        self._steps: Iterator[Step] | None = None
        self._stop_prefetcher = weakref.finalize(self, lambda: None)
        self._closed = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Step:
        if self._closed:
            raise ValueError("the stream is closed")
        if self._steps is None:
            self._steps = self._begin()
        try:
            step = next(self._steps)
        except BaseException:
            if not self._prefetch_steps:
                self._steps = None  # a generator that raised is at its end; the prefetcher raises again
            raise
        self.consumed_samples += self._table.stage_of_sample(self.consumed_samples)[0].size
        if self._feed.skips:
            self._feed.skips.hand_out(self.consumed_samples)
        return step

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def consumed_tokens(self) -> int:
        """Tokens of all ranks in the steps handed out: samples times the seq_length that they had."""
        return self._feed.phase.tokens_at(self.consumed_samples)

    def epochs(self) -> dict[str, float]:
        """Passes over each corpus so far, by name."""
        return self._feed.passes(self.consumed_samples)

    def skipped(self, consumed_samples: int | None = None) -> dict[str, float]:
        """Samples and blocks that all ranks left out so far; empty where a damaged block is an error.

        Args:
            consumed_samples: up to there; None counts to the position of the stream.
        """
        end = self.consumed_samples if consumed_samples is None else consumed_samples
        return self._feed.skips.counts(end) if self._feed.skips else {}

    def state_dict(self) -> dict[str, Any]:
        """Position after the steps handed out so far: small, JSON-able, the same on every rank."""
        return replace(self._state, consumed_samples=self.consumed_samples).to_json()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the position of a state; costs nothing, wherever it is.

        Data-parallel size and micro_batch_size may differ from those of the saved run. Another
        global_batch_size, ramp, seq_length, or other corpora and weights begin a new phase.

        Raises:
            DataError: the state belongs to other data, or to other settings that decide on the order.
            ConfigError: the ranks cannot share a batch size of `batch.ramp` that is still to come.
        """
        loaded = StreamState.from_json(state).continued_by(self._fresh)
        feed, self._table = (
            self._feed.at(loaded.phases[-1]),
            loaded.step_table().checked(loaded.consumed_samples, self._plan),
        )
        self._end_prefetch()
        self._state, self._feed, self.consumed_samples = loaded, feed, loaded.consumed_samples

    def close(self) -> None:
        """Stop the thread and close the shards. May be called twice."""
        self._end_prefetch()
        self._closed = True

    def _begin(self) -> Iterator[Step]:
        table = self._table.checked(self.consumed_samples, self._plan)
        if self._feed.skips:
            self._feed.skips.go_on(self.consumed_samples)
        steps = steps_from(self._feed, table, self._plan, self.consumed_samples)
        if not self._prefetch_steps:
            return steps
        prefetcher = Prefetcher(steps, self._prefetch_steps)
        self._stop_prefetcher = weakref.finalize(self, partial(_stop_reading, self._feed, prefetcher))
        return iter(prefetcher.get, None)

    def _end_prefetch(self) -> None:
        self._stop_prefetcher()
        self._feed.close()  # also lets a feed that was stopped read again
        self._steps = None


def open_stream(
    config: RunConfig | StreamConfig,
    split: Split = "train",
    data_parallel_rank: int = 0,
    data_parallel_size: int = 1,
    cache: Path | None = None,
) -> Stream:
    """Open the data of a run at its beginning.

    Args:
        config: the run, or its data part alone.
        split: "train" is shuffled and mixed; "validation" comes in storage order.
        data_parallel_rank: which part of each global batch to read.
        data_parallel_size: number of parts.
        cache: directory for indexes that take a while to build; `run_dir`/data_cache where None.

    Raises:
        ConfigError: global_batch_size does not divide among the ranks.
        DataError: shards are missing, damaged, or made with another tokenizer.
    """
    settings = _settings(config, cache)
    plan = _rank_plan(settings, data_parallel_rank, data_parallel_size)
    feed = open_feed(settings, split)
    if settings.data.on_bad_block == "skip":
        feed = replace(feed, skips=_skips(settings, split, plan))
    return Stream(feed, plan, initial_state(settings, split, feed.phase), settings.data.prefetch_steps)


def eval_batches(
    config: RunConfig | StreamConfig,
    data_parallel_rank: int = 0,
    data_parallel_size: int = 1,
    cache: Path | None = None,
) -> list[Step]:
    """The validation set of a rank: always the same samples with the same masks, whatever the seed.

    It is the first `training.eval_samples` samples of the validation split in storage order, or all of them
    where there are fewer, in whole global batches. A split smaller than one global batch repeats to fill it.

    Args:
        config: the run, or its data part alone.
        data_parallel_rank: which part of each global batch to read.
        data_parallel_size: number of parts.
        cache: as in `open_stream`.

    Raises:
        ConfigError: global_batch_size does not divide among the ranks.
        DataError: there is no validation split, or its shards are damaged.
    """
    settings = _settings(config, cache)
    settings = settings.model_copy(update={"batch": settings.batch.model_copy(update={"ramp": None})})
    plan = _rank_plan(settings, data_parallel_rank, data_parallel_size)
    feed = open_feed(settings, "validation")
    if settings.data.on_bad_block == "skip":
        feed = replace(feed, skips=_skips(settings, "validation", plan))
    try:
        samples = min(settings.eval_samples, feed.mixture.samples_before_repeat(feed.sizes))
        steps = steps_from(feed, initial_state(settings, "validation", feed.phase).step_table(), plan, 0)
        if feed.skips:
            feed.skips.go_on(0)
        found = [next(steps) for _ in range(max(1, samples // plan.global_batch_size))]
        if feed.skips:
            feed.skips.hand_out(len(found) * plan.global_batch_size)
        return found
    finally:
        feed.close()


def _stop_reading(feed: Feed, prefetcher: Prefetcher[Step]) -> None:
    """End a thread that may be waiting for stalled storage."""
    feed.stop()
    prefetcher.stop()


def _skips(config: StreamConfig, split: Split, plan: RankPlan) -> SkipLog:
    return SkipLog(Path(config.cache) / SKIPPED_DIRECTORY, split, plan.rank, plan.size)


def _settings(config: RunConfig | StreamConfig, cache: Path | None) -> StreamConfig:
    settings = StreamConfig.of(config)
    return settings.model_copy(update={"cache": str(cache)}) if cache else settings


def _rank_plan(config: StreamConfig, rank: int, size: int) -> RankPlan:
    batch = config.batch
    return RankPlan(batch.global_batch_size, batch.micro_batch_size, rank, size)
