"""The chain of attempts of a run: one JSON line when an attempt starts and one when it ends.

A run that was stopped and started again has several attempts; `logs/attempts.jsonl` tells when each one
began, where, with how many ranks and how it ended. An attempt without an end line was killed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.plan import LaunchPlan
from pretrain.config.exit_codes import OK, STOPPED

FILE_NAME = "attempts.jsonl"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run."""

    number: int
    """1 for the first."""
    path: Path

    def record(self, **facts: object) -> None:
        """Append something else about it."""
        _append(self.path, {"attempt": self.number} | facts)

    def record_end(self, exit_code: int, seconds: float, **facts: object) -> None:
        """Append how it ended; where that cannot be written (disk full, ...) it is told, not raised."""
        end = {"attempt": self.number, "ended": _now(), "exit_code": exit_code, "seconds": round(seconds, 1)}
        try:
            _append(self.path, end | facts)
        except OSError as error:
            text = f"the end of attempt {self.number} is not on record: {self.path}: {error.strerror}"
            print(f"headwater: {text}", file=sys.stderr, flush=True)


def begin_attempt(plan: LaunchPlan) -> Attempt:
    """Number the attempt of a plan on this machine and record its start."""
    return begin(plan.log_dir, launcher_pid=os.getpid(), world_size=plan.world_size, argv=list(plan.argv))


def begin(log_dir: Path, **facts: object) -> Attempt:
    """Number an attempt and record its start with what is known of it."""
    log_dir.mkdir(parents=True, exist_ok=True)
    path = log_dir / FILE_NAME
    attempt = Attempt(1 + _count_attempts(path), path)
    start = {"attempt": attempt.number, "started": _now(), "host": socket.gethostname()}
    _append(path, start | {"checkpoint": newest_checkpoint(log_dir.parent)} | facts)
    return attempt


def read(log_dir: Path) -> list[dict[str, Any]]:
    """One record for each attempt, its start and end merged; half a line of a lost machine is left out."""
    path = log_dir / FILE_NAME
    records: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            part = json.loads(line)
        except ValueError:
            continue
        records.setdefault(part["attempt"], {}).update(part)
    return [records[number] for number in sorted(records)]


def failures_in_a_row(log_dir: Path, job: str) -> int:
    """How many latest attempts of a job crashed or were lost since the newest checkpoint was written.

    Those of a job that this one was submitted in place of count, too.

    Args:
        log_dir: Where the attempts are recorded.
        job: The job's id; in an array `N_element`.
    """
    newest, count = newest_checkpoint(log_dir.parent), 0
    for record in reversed(read(log_dir)):
        if record.get("next_job") == job:
            job = record["job"]
        if record.get("job") != job or record.get("checkpoint") != newest:
            break
        if record.get("exit_code") in (OK, STOPPED):
            break
        count += 1
    return count


def newest_checkpoint(run_dir: Path) -> str | None:
    """Name of the newest checkpoint, whether or not it verifies."""
    return max((path.name for path in (run_dir / "checkpoints").glob("step-*")), default=None)


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
