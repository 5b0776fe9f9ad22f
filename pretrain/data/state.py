"""The state of a stream: phases, batch sizes and one count. The same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from data_tools.errors import DataError
from pretrain.data.phases import Phase, next_phase
from pretrain.data.settings import StreamConfig
from pretrain.data.steps import BatchPlan, StepTable

STATE_FORMAT = 2
"""Raised whenever the same state would mean other samples: order, cutting, masking."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """Everything that decides which samples come next.

    Attributes:
        kind, split, seed: of the run; they never change.
        fixed: `StreamConfig.fixed`; does not change either.
        phases: what is read, by first sample.
        batches: sizes of the steps, by first step.
        consumed_samples: samples handed to the trainers of all ranks.
    """

    kind: str
    split: str
    seed: int
    fixed: dict[str, Any]
    phases: tuple[Phase, ...]
    batches: tuple[BatchPlan, ...]
    consumed_samples: int

    def step_table(self) -> StepTable:
        """Which samples each step reads."""
        return StepTable(self.batches)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "format": STATE_FORMAT,
            "kind": self.kind,
            "split": self.split,
            "seed": self.seed,
            "fixed": self.fixed,
            "phases": [phase.to_json() for phase in self.phases],
            "batches": [plan.to_json() for plan in self.batches],
            "consumed_samples": self.consumed_samples,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StreamState:
        """The inverse of `to_json`.

        Raises:
            DataError: it is of another format, or no state.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"cannot continue the data stream: its state is no mapping but {data!r:.80}")
        found = data.get("format")
        if found != STATE_FORMAT:
            raise DataError(
                f"cannot continue the data stream: its state has format {found!r}, this version reads "
                f"{STATE_FORMAT}, in which samples have another order; finish the run with the version that "
                "began it, or start in another run_dir"
            )
        consumed = data.get("consumed_samples")
        if not isinstance(consumed, int) or consumed < 0:
            raise DataError(f"cannot continue the data stream: consumed_samples is {consumed!r}")
        try:
            state = cls(
                kind=data["kind"],
                split=data["split"],
                seed=data["seed"],
                fixed=dict(data["fixed"]),
                phases=tuple(Phase.from_json(phase) for phase in data["phases"]),
                batches=tuple(BatchPlan.from_json(plan) for plan in data["batches"]),
                consumed_samples=consumed,
            )
            if state.phases[0].first_sample or state.batches[0].sample:
                raise ValueError("phases and batches do not begin at sample 0")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(f"cannot continue the data stream: its state is damaged ({error!r})") from error
        return state

    def continued_by(self, fresh: StreamState) -> StreamState:
        """The state of a run that goes on from here with its own configuration.

        Args:
            fresh: the state that the configuration would begin a training with.

        Raises:
            DataError: the run is another one, or its data cannot continue this.
        """
        for name in ("kind", "split", "seed"):
            ours, theirs = getattr(fresh, name), getattr(self, name)
            if ours != theirs:
                raise DataError(
                    f"cannot continue the data stream: {name} is {ours!r} in this run, {theirs!r} in the "
                    "saved state"
                )
        for name in sorted(fresh.fixed.keys() | self.fixed.keys()):
            ours, theirs = fresh.fixed.get(name), self.fixed.get(name)
            if ours != theirs:
                raise DataError(
                    f"cannot continue the data stream: data.{name} is {ours!r} in this run, {theirs!r} in "
                    "the saved state; restore it or start in another run_dir"
                )
        step = self.step_table().step_before(self.consumed_samples)
        return replace(self, phases=self._phases(fresh), batches=self._batches(fresh, step))

    def _phases(self, fresh: StreamState) -> tuple[Phase, ...]:
        (wanted,), consumed = fresh.phases, self.consumed_samples
        begun = tuple(phase for phase in self.phases if phase.first_sample < consumed)
        if not begun:
            return fresh.phases
        if self.phases[-1].same_data(wanted):
            return self.phases  # a phase that has just begun included
        if begun[-1].same_data(wanted):
            return begun
        return (*begun, next_phase(begun, wanted, consumed, self.seed))

    def _batches(self, fresh: StreamState, step: int) -> tuple[BatchPlan, ...]:
        (wanted,), consumed = fresh.batches, self.consumed_samples
        if self.batches[-1].same_sizes(wanted.sizes):
            return self.batches
        begun = tuple(plan for plan in self.batches if plan.sample < consumed)
        if begun and begun[-1].same_sizes(wanted.sizes):
            return begun
        return (*begun, BatchPlan(step, consumed, wanted.sizes))


def initial_state(config: StreamConfig, split: str, phase: Phase) -> StreamState:
    """The state at the beginning of a training."""
    batches = (BatchPlan(0, 0, config.batch),)
    return StreamState(config.kind, split, config.seed, config.fixed(), (phase,), batches, 0)
