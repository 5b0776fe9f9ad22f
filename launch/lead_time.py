"""How long before the time limit a run must be told to save: measured steps and saves, with room."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

DEFAULT_LEAD_SECONDS = 300
"""For a run that nothing is known of yet."""

SMALLEST_LEAD_SECONDS = 60
LARGEST_SHARE = 3
"""At most one part in so many of the time limit goes to the lead."""

_TAIL_BYTES = 1 << 20
_SAVED = re.compile(rb"^saved .* in (\d+(?:\.\d+)?) s", re.MULTILINE)


def lead_seconds(run_dir: Path, limit_seconds: int) -> int:
    """The lead for a run's next attempt: measured where earlier ones left something to measure."""
    measured = measured_lead_seconds(run_dir)
    wanted = DEFAULT_LEAD_SECONDS if measured is None else measured
    return max(1, min(wanted, limit_seconds // LARGEST_SHARE))


def measured_lead_seconds(run_dir: Path) -> int | None:
    """Three of the slowest recent steps, two of the slowest recent saves and a minute; None if unknown.

    The ranks notice the request at the end of a step and save; SLURM looks at its clock twice a minute.
    """
    steps = step_seconds(run_dir)
    if not steps:
        return None
    saves = save_seconds(run_dir) or [0.0]
    return math.ceil(SMALLEST_LEAD_SECONDS + 3 * max(steps) + 2 * max(saves))


def step_seconds(run_dir: Path, rows: int = 50) -> list[float]:
    """Seconds of a step in the last rows of metrics.jsonl."""
    found = []
    for line in _tail(run_dir / "metrics.jsonl").splitlines()[-rows:]:
        try:
            seconds = json.loads(line).get("step_seconds")
        except (ValueError, AttributeError):
            continue  # the first line of the tail and the last of a killed attempt may be torn
        if isinstance(seconds, int | float):
            found.append(float(seconds))
    return found


def save_seconds(run_dir: Path, saves: int = 10) -> list[float]:
    """Seconds of the last saves, as the log of rank 0 tells them."""
    return [float(text) for text in _SAVED.findall(_tail(run_dir / "logs" / "rank-0.log"))][-saves:]


def _tail(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read()
    except FileNotFoundError:
        return b""
