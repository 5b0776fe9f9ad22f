"""What a run tells: metrics.jsonl, TensorBoard and one live line. Only the main rank writes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from data_tools.plain_json import to_json
from pretrain.checkpoint.files import write_text


class Metrics(Protocol):
    """Where numbers go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step."""

    def say(self, text: str) -> None:
        """Print one line to the person at the terminal."""

    def live(self, text: str) -> None:
        """Replace the live line."""


class SilentMetrics:
    """The metrics of every rank but the main one."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: the main rank writes."""

    def say(self, text: str) -> None:
        """Nothing: the main rank speaks."""

    def live(self, text: str) -> None:
        """Nothing: the main rank speaks."""


class RunMetrics:
    """metrics.jsonl and tensorboard/ of a run directory, continued after `step`.

    Rows beyond `step`, written by an attempt that died before its next checkpoint, are dropped, so each step
    stands once.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of imports that only the main rank pays

        self._path = run_dir / "metrics.jsonl"
        if self._path.exists():
            rows = [
                line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step
            ]
            write_text(self._path, "".join(f"{line}\n" for line in rows))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        self._terminal = sys.stderr.isatty() or os.environ.get("HEADWATER_TTY") == "1"
        self._live_shown = False

    def __enter__(self) -> RunMetrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_live_line()
        self._file.close()
        self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One JSON row (null for what is not finite) and one TensorBoard scalar for each value."""
        self._file.write(to_json({"step": step} | dict(values)) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Print one line."""
        self._end_live_line()
        print(text, file=sys.stderr, flush=True)

    def live(self, text: str) -> None:
        """Rewrite the last line on a terminal; print a line elsewhere."""
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._live_shown = True
        else:
            print(text, file=sys.stderr, flush=True)

    def _end_live_line(self) -> None:
        if self._live_shown:
            print(file=sys.stderr, flush=True)
            self._live_shown = False


def _step_of(line: str) -> float:
    """Step of a metrics row; a torn last line (killed while writing) counts as beyond every step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
