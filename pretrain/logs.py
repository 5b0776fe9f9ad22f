"""Each rank's output in `<run_dir>/logs/rank-N.log`, whoever started the rank."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TextIO

LAUNCHER_VARIABLE = "HEADWATER_LAUNCHER"
"""Set by `headwater launch`, which writes the rank logs itself."""


class _Tee:
    """A text stream that writes to two."""

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._terminal.write(text)

    def flush(self) -> None:
        self._log.flush()
        self._terminal.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._terminal, name)


def log_rank_output(run_dir: Path, rank: int) -> None:
    """Copy what this process prints, tracebacks too, into its log where no `headwater launch` does it."""
    if LAUNCHER_VARIABLE in os.environ:
        return
    path = run_dir / "logs" / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("a", encoding="utf-8", buffering=1)
    log.write(
        f"--- rank {rank}, pid {os.getpid()}, {datetime.now().astimezone().isoformat(timespec='seconds')}\n"
    )
    sys.stdout = _Tee(sys.stdout, log)
    sys.stderr = _Tee(sys.stderr, log)
