"""Which samples each optimizer step of a training reads, and which of them a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_tools.errors import DataError
from pretrain.config.errors import ConfigError
from pretrain.config.ramp import BatchStage, batch_stages, samples_before
from pretrain.config.schema import BatchConfig, PretrainBatchConfig, RampConfig
from pretrain.data.philox import I64


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


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """From a step on, batches of these sizes.

    Attributes:
        step, sample: optimizer steps and samples before it.
        sizes: constant or ramped.
    """

    step: int
    sample: int
    sizes: PretrainBatchConfig

    def to_json(self) -> dict[str, Any]:
        """As plain values; without what has no part in the order."""
        ramp = self.sizes.ramp.model_dump() if self.sizes.ramp else None
        size = self.sizes.global_batch_size
        return {"step": self.step, "sample": self.sample, "global_batch_size": size, "ramp": ramp}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BatchPlan:
        """The inverse of `to_json`."""
        ramp = RampConfig(**data["ramp"]) if data["ramp"] else None
        sizes = PretrainBatchConfig(
            micro_batch_size=1, global_batch_size=data["global_batch_size"], seq_length=1, ramp=ramp
        )
        return cls(int(data["step"]), int(data["sample"]), sizes)

    def same_sizes(self, batch: BatchConfig) -> bool:
        """Whether a configuration asks for the same sizes."""
        ramp = batch.ramp if isinstance(batch, PretrainBatchConfig) else None
        return (self.sizes.global_batch_size, self.sizes.ramp) == (batch.global_batch_size, ramp)


class StepTable:
    """Which samples each optimizer step of a training reads."""

    def __init__(self, plans: Sequence[BatchPlan]) -> None:
        self.stages: list[BatchStage] = []
        for plan in plans:
            self.stages = [stage for stage in self.stages if stage.sample < plan.sample]
            self.stages += batch_stages(plan.sizes, plan.step, plan.sample)

    def checked(self, sample: int, plan: RankPlan) -> StepTable:
        """This table, if the ranks can share every step at and after a sample.

        Raises:
            ConfigError: naming the sizes that they cannot share.
        """
        pieces = plan.micro_batch_size * plan.size
        wrong = sorted({stage.size for stage in self.stages_from(sample) if stage.size % pieces})
        if wrong:
            raise ConfigError(
                f"batch.ramp: steps of {', '.join(map(str, wrong))} samples are to come, no multiples of "
                f"batch.micro_batch_size x data-parallel size = {plan.micro_batch_size} x {plan.size}; "
                "change one of them, or take more ranks when the ramp is over"
            )
        return self

    def stages_from(self, sample: int) -> list[BatchStage]:
        """The stages of all steps at and after a sample."""
        current, _ = self.stage_of_sample(sample)
        return [stage for stage in self.stages if stage.sample >= current.sample]

    def stage_of_sample(self, sample: int) -> tuple[BatchStage, int | None]:
        """The stage that a sample is in, and how many of its steps begin at or after it (None: no end)."""
        index = max(i for i, stage in enumerate(self.stages) if stage.sample <= sample)
        stage = self.stages[index]
        if index + 1 == len(self.stages):
            return stage, None
        return stage, (self.stages[index + 1].sample - sample) // stage.size

    def step_before(self, sample: int) -> int:
        """Optimizer steps that read the samples before `sample`.

        Raises:
            DataError: no step ends there.
        """
        stage, _ = self.stage_of_sample(sample)
        steps, rest = divmod(sample - stage.sample, stage.size)
        if rest:
            raise DataError(
                f"cannot continue the data stream: consumed_samples is {sample}, within a step of "
                f"{stage.size} samples; the state was changed or belongs to another run"
            )
        return stage.step + steps

    def samples_before(self, step: int) -> int:
        """Samples that the first `step` optimizer steps read."""
        return samples_before(self.stages, step)
