"""What a training job consists of: the parts that the loop works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pretrain.config import JobConfig
from pretrain.parallel.topology import Topology
from pretrain.parallel.zero import Engine
from pretrain.run_directory import Claim
from pretrain.step import MicroBatch
from pretrain.stop import StopSignals
from pretrain.watchdog import Watchdog


class Stream(Protocol):
    """Training data: one item is one optimizer step's micro-batches for this data-parallel rank."""

    consumed_samples: int

    @property
    def consumed_tokens(self) -> int:
        """Tokens of the samples so far, each counted with the seq_length that it had."""

    def __next__(self) -> list[MicroBatch]:
        """The next optimizer step's micro-batches."""

    def state_dict(self) -> dict[str, Any]:
        """The cursor, JSON-able."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind a cursor."""

    def epochs(self) -> dict[str, float]:
        """Passes over each corpus so far."""


class Ledger(Protocol):
    """Where a run records what it read; only the main rank has one."""

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """An attempt starts."""

    def reached(self, step: int, consumed_samples: int, skipped: Mapping[str, float]) -> None:
        """Steps are done; so much was left out of them so far."""

    def saved(self, step: int, consumed_samples: int) -> None:
        """A checkpoint is written."""

    def write(self, kind: str, **values: Any) -> None:
        """Something else that happened to the data: a step without an update, a return to a checkpoint."""


Evaluation = Callable[[Engine, Callable[[], bool]], dict[str, float] | None]
"""Metrics on held-out data, the same on all ranks; None when the second argument, asked now and then by all
ranks together, said stop."""


class Selection(Protocol):
    """Which evaluation of a run is the best; the same on all ranks."""

    finished: bool
    """The run is to end: it has not got better for long enough."""

    def resume(self, job: Job, step: int) -> None:
        """The run goes on behind a step."""

    def evaluated(self, job: Job, step: int, scores: Mapping[str, float]) -> str:
        """Judge an evaluation, keep its weights if it is the best; what there is to tell about it."""


@dataclass(kw_only=True)
class Job:
    """Everything the loop works with."""

    config: JobConfig
    topology: Topology
    engine: Engine
    stream: Stream
    claim: Claim
    signals: StopSignals
    evaluate: Evaluation | None = None
    """None never evaluates."""
    selection: Selection | None = None
    """None trains all steps and keeps the last checkpoints only."""
    flops_per_step: float | None = None
    """Model FLOPs of an optimizer step of global_batch_size, for model_tflops and mfu."""
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    """Small files of every checkpoint (the tokenizer): name -> content, which outlives where it came from."""
    ledger: Ledger | None = None
    extra_metrics: Callable[[], Mapping[str, float]] = dict
    """More numbers for each log line; called on the main rank."""

    @property
    def is_finished_early(self) -> bool:
        """The selection ends the run before its last step."""
        return self.selection is not None and self.selection.finished

    watchdog: Watchdog = field(init=False)

    def __post_init__(self) -> None:
        timeout = self.config.training.hang_timeout_seconds
        self.watchdog = Watchdog(self.run_dir, self.topology, timeout)

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return Path(self.config.run_dir)
