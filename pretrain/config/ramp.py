"""Global batch sizes over a run: constant, or growing at the beginning. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pretrain.config.schema import BatchConfig, PretrainBatchConfig


class BatchStage(NamedTuple):
    """Consecutive optimizer steps of one size.

    Attributes:
        step: steps before the first one of the stage.
        sample: samples before it.
        size: global_batch_size of its steps.
    """

    step: int
    sample: int
    size: int


def batch_size_at(batch: BatchConfig, sample: int) -> int:
    """Size of a step that begins after `sample` samples of the run.

    Without a ramp `global_batch_size`. With one it begins at `ramp.start` and grows by `ramp.increment` after
    each of (global_batch_size - start) / increment equal parts of `ramp.samples`, as in Megatron-LM.
    """
    ramp = batch.ramp if isinstance(batch, PretrainBatchConfig) else None
    if ramp is None or sample >= ramp.samples:
        return batch.global_batch_size
    increments = (batch.global_batch_size - ramp.start) // ramp.increment
    return ramp.start + sample * increments // ramp.samples * ramp.increment


def batch_stages(batch: BatchConfig, step: int = 0, sample: int = 0) -> list[BatchStage]:
    """All stages from a step on; the last one has no end.

    Args:
        batch: sizes; a ramp that `validate` accepted.
        step: optimizer steps done.
        sample: samples that they read.
    """
    stages = []
    while (size := batch_size_at(batch, sample)) != batch.global_batch_size:
        stages.append(BatchStage(step, sample, size))
        steps = _steps_within(batch, sample, size)
        step, sample = step + steps, sample + steps * size
    return [*stages, BatchStage(step, sample, batch.global_batch_size)]


def samples_before(stages: Sequence[BatchStage], step: int) -> int:
    """Samples that the first `step` optimizer steps read, from the stages of a whole run."""
    stage = max((stage for stage in stages if stage.step <= step), key=lambda stage: stage.step)
    return stage.sample + (step - stage.step) * stage.size


def _steps_within(batch: BatchConfig, sample: int, size: int) -> int:
    """Steps of `size` samples until the ramp asks for more."""
    assert isinstance(batch, PretrainBatchConfig) and batch.ramp
    ramp = batch.ramp
    increments = (batch.global_batch_size - ramp.start) // ramp.increment
    level = (size - ramp.start) // ramp.increment
    end = -(-(level + 1) * ramp.samples // increments)
    return -(-(end - sample) // size)


def batch_sizes(batch: BatchConfig) -> list[int]:
    """Every size that a step may have, ascending; ranks must be able to share each of them."""
    ramp = batch.ramp if isinstance(batch, PretrainBatchConfig) else None
    growing = range(ramp.start, batch.global_batch_size, ramp.increment) if ramp else ()
    return [*growing, batch.global_batch_size]
