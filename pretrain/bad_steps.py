"""Bad steps: a loss or gradient that is not finite, or a loss far above what was usual.

The update of such a step is left out, on all ranks. After several in a row the weights themselves are
suspect: the run goes back to those of its last good checkpoint and goes on behind the data that it read
since then. Every decision follows from numbers that all ranks share, and from the record of earlier attempts
(`bad_steps.jsonl`), so a replay decides the same.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.config.schema import BadStepsConfig
from pretrain.step import StepMetrics, TrainingError

RECORD = "bad_steps.jsonl"
SPIKE, RECORDED, NOT_FINITE = 1, 2, 3
MIN_WINDOW = 16
"""Losses before the first judgement on a spike: the deviation of fewer says nothing."""
MIN_DEVIATION = 1e-3
"""Of the median: losses that hardly differ make no spike of the smallest change."""
MAD_TO_SIGMA = 1.4826
"""Of normally distributed values: median absolute deviation x this = standard deviation."""


class BadSteps:
    """The losses so far, and what to do about the present one.

    Attributes:
        in_a_row: bad steps up to now without a good one between.
        skipped: steps without an update in the whole run.
        rollbacks: returns to a checkpoint in the whole run.
    """

    def __init__(self, config: BadStepsConfig, known: Mapping[int, str]) -> None:
        """Begin without history.

        Args:
            config: what counts as bad.
            known: steps that an earlier attempt found bad, and why.
        """
        self._config, self._known = config, dict(known)
        self._losses: deque[float] = deque(maxlen=config.spike_window)
        self._reason = ""
        self.in_a_row = self.skipped = self.rollbacks = 0

    def suspicion(self, step: int, loss: float) -> int:
        """What this rank thinks of a step before its update: 0, SPIKE, RECORDED or NOT_FINITE."""
        if not math.isfinite(loss):
            return NOT_FINITE
        if step in self._known:
            return RECORDED
        return SPIKE if self._is_spike(loss) else 0

    def condemn(self, step: int, loss: float, suspicion: int) -> bool:
        """Take the strongest suspicion of all ranks; True when the update is to be left out."""
        self._reason = {
            0: "",
            SPIKE: f"loss {loss:.4f} far above the median {self._median():.4f}",
            RECORDED: f"{self._known.get(step)} (recorded by an earlier attempt)",
            NOT_FINITE: f"loss {loss}" if not math.isfinite(loss) else "loss not finite on another rank",
        }[suspicion]
        return bool(suspicion)

    def count(self, step: int, result: StepMetrics) -> str:
        """Take note of a step that is over; returns why it was bad, empty for a good one."""
        reason = self._reason
        if not reason and result.overflow:
            return ""  # not the step was bad, fp16's loss scale was too high
        if not reason and not result.applied:
            reason = f"gradient norm {result.grad_norm}"
        if not reason:
            self._losses.append(result.losses["loss"])
            self.in_a_row = 0
            return ""
        self.in_a_row += 1
        self.skipped += 1
        self._known[step] = reason.removesuffix(" (recorded by an earlier attempt)")
        return reason

    @property
    def must_roll_back(self) -> bool:
        """Whether there were too many in a row."""
        return self.in_a_row >= self._config.max_in_a_row

    def rolled_back(self, saved: Mapping[str, Any]) -> None:
        """Go on with the history of a checkpoint.

        Raises:
            TrainingError: it has happened too often.
        """
        self.rollbacks += 1
        if self.rollbacks > self._config.max_rollbacks:
            raise TrainingError(
                f"the run went back to a checkpoint {self._config.max_rollbacks} times and loss or gradient "
                "are bad again; stopped without saving. Lower optimizer.lr, or look at the data of the steps "
                f"in {RECORD}; bad_steps.max_rollbacks allows more"
            )
        self._losses = deque(saved["losses"], maxlen=self._config.spike_window)
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "losses": list(self._losses),
            "in_a_row": self.in_a_row,
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as a checkpoint says."""
        self._losses = deque(state["losses"], maxlen=self._config.spike_window)
        self.in_a_row, self.skipped = int(state["in_a_row"]), int(state["skipped"])
        self.rollbacks = int(state["rollbacks"])

    def _median(self) -> float:
        return statistics.median(self._losses) if self._losses else math.nan

    def _is_spike(self, loss: float) -> bool:
        limit = self._config.spike_zscore
        if not limit or len(self._losses) < min(MIN_WINDOW, self._config.spike_window):
            return False
        median = self._median()
        deviation = MAD_TO_SIGMA * statistics.median(abs(one - median) for one in self._losses)
        return loss - median > limit * max(deviation, MIN_DEVIATION * abs(median))


def read_record(run_dir: Path, after_step: int) -> dict[int, str]:
    """Steps after `after_step` that an earlier attempt found bad, and why."""
    path = run_dir / RECORD
    if not path.exists():
        return {}
    known = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn when its attempt was killed; that step is judged anew
        if entry["kind"] == "skip" and entry["step"] > after_step:
            known[int(entry["step"])] = str(entry["reason"])
    return known


def append_record(run_dir: Path, kind: str, **values: Any) -> None:
    """Add a line to the record of a run; the main rank does."""
    path = run_dir / RECORD
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps({"kind": kind, **values}) + "\n")
