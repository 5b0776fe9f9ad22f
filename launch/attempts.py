"""The chain of attempts of a run: one JSON line when an attempt starts and one when it ends.

A run that was stopped and started again has several attempts; `logs/attempts.jsonl` tells when each one
began, where, with how many ranks and how it ended. An attempt without an end line was killed.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch.plan import LaunchPlan


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run."""

    number: int
    """1 for the first."""
    path: Path

    def record_end(self, exit_code: int, seconds: float) -> None:
        """Append how it ended."""
        _append(
            self.path,
            {"attempt": self.number, "ended": _now(), "exit_code": exit_code, "seconds": round(seconds, 1)},
        )


def begin_attempt(plan: LaunchPlan) -> Attempt:
    """Number the attempt and record its start."""
    plan.log_dir.mkdir(parents=True, exist_ok=True)
    path = plan.log_dir / "attempts.jsonl"
    attempt = Attempt(1 + _count_attempts(path), path)
    _append(
        path,
        {
            "attempt": attempt.number,
            "started": _now(),
            "host": socket.gethostname(),
            "launcher_pid": os.getpid(),
            "world_size": plan.world_size,
            "argv": list(plan.argv),
        },
    )
    return attempt


def header(attempt: Attempt, plan: LaunchPlan, rank: int) -> str:
    """The line that separates attempts in a rank's log."""
    place = f"rank {rank} of {plan.world_size}, {socket.gethostname()}"
    return f"=== attempt {attempt.number}, {place}, {_now()} ==="


def _count_attempts(path: Path) -> int:
    if not path.exists():
        return 0
    # Not json.loads: a machine that lost power may have left half a line.
    return sum('"started"' in line for line in path.read_text(encoding="utf-8").splitlines())


def _append(path: Path, record: dict[str, object]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
