"""The ledger of a run, `ledger.jsonl`: what it read, one line for each thing that happened to its data.

    {"kind": "attempt", "step": 0, "state": {...}, "config": {...}, "layout": {...}}   a start of the run
    {"kind": "steps", "step": 20, "consumed_samples": 640}      steps up to this one are done
    {"kind": "saved", "step": 20, "consumed_samples": 640}      and in a checkpoint

Where `data.on_bad_block` is `skip`, a "steps" line also has how many samples and blocks were left out so far,
`data/skipped_samples` and `data/skipped_blocks`; `data_cache/skipped` has each of them.

Lines are only ever appended, each with one write, by the main rank. An attempt that died leaves at most one
torn line, which readers pass over. What an attempt did beyond the step where the next one begins was undone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_tools.errors import DataError
from pretrain.data.settings import StreamConfig
from pretrain.data.state import StreamState
from pretrain.data.steps import StepTable

LEDGER = "ledger.jsonl"


class Ledger:
    """The writing end."""

    def __init__(self, run_dir: Path, config: StreamConfig, layout: Mapping[str, int]) -> None:
        """Say what this attempt is; `begin` opens the file.

        Args:
            run_dir: the run directory.
            config: the data part of the run.
            layout: data_parallel_size, tensor_model_parallel_size.
        """
        self._path, self._config, self._layout = run_dir / LEDGER, config, dict(layout)

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Record the start of an attempt.

        Args:
            step: optimizer steps done before it.
            state: of the stream.
        """
        config = self._config.model_dump(mode="json")
        self.write("attempt", step=step, layout=self._layout, state=dict(state), config=config)

    def reached(
        self, step: int, consumed_samples: int, skipped: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Record that optimizer steps up to `step` are done; `skipped`: `SkipLog.counts` of their samples."""
        self.write("steps", step=step, consumed_samples=consumed_samples, **skipped)

    def saved(self, step: int, consumed_samples: int) -> None:
        """Record that a checkpoint has the steps up to `step`."""
        self.write("saved", step=step, consumed_samples=consumed_samples)

    def write(self, kind: str, **values: Any) -> None:
        """Append one line, on the disk when this returns."""
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        line = json.dumps({"kind": kind, **values, "time": time}) + "\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, ("\n" * torn + line).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run, as the ledger tells it.

    Attributes:
        number: 1 for the first.
        step: optimizer steps done before it.
        state: of the stream when it began.
        config: the data part of its configuration.
        layout: data_parallel_size, tensor_model_parallel_size.
        lines: what it recorded after its start.
    """

    number: int
    step: int
    state: StreamState
    config: StreamConfig
    layout: dict[str, int]
    lines: list[dict[str, Any]]

    @property
    def table(self) -> StepTable:
        """Which samples its steps read."""
        return self.state.step_table()

    @property
    def last_step(self) -> int:
        """The last step that it recorded."""
        return max([self.step, *(int(line["step"]) for line in self.lines if "step" in line)])


def read_ledger(run_dir: Path) -> list[Attempt]:
    """All attempts of a run, by their start.

    Raises:
        DataError: there is no ledger, or it does not begin with an attempt.
    """
    path = run_dir / LEDGER
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; only pretraining runs keep a ledger, from their first step on"
        ) from error
    attempts: list[Attempt] = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn when its attempt was killed
        if record["kind"] == "attempt":
            attempts.append(_attempt(len(attempts) + 1, record))
        elif attempts:
            attempts[-1].lines.append(record)
        else:
            raise DataError(f"{path}: does not begin with an attempt; its beginning was lost")
    if not attempts:
        raise DataError(f"{path}: has no attempt yet")
    return attempts


def effective(attempts: Sequence[Attempt]) -> list[tuple[Attempt, int]]:
    """The attempts whose work the run has kept, each with its last kept step, in order.

    An attempt that begins at a step undoes what was done beyond it.
    """
    kept: list[tuple[Attempt, int]] = []
    for attempt in attempts:
        kept = [(one, last) for one, last in kept if one.step < attempt.step]
        if kept:
            # The checkpoint that it begins with proves those steps, recorded or not.
            kept[-1] = kept[-1][0], attempt.step
        kept.append((attempt, attempt.last_step))
    return kept


def _attempt(number: int, record: Mapping[str, Any]) -> Attempt:
    return Attempt(
        number=number,
        step=int(record["step"]),
        state=StreamState.from_json(record["state"]),
        config=StreamConfig.model_validate(record["config"]),
        layout={name: int(value) for name, value in record["layout"].items()},
        lines=[],
    )
