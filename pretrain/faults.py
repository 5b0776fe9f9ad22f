"""Planted faults: tests and drills ask through the environment for a rank to die or wait at a certain point.

    HEADWATER_FAULT="save.state kill rank=1 nth=2"    the second time that rank 1 comes to this point
    HEADWATER_FAULT="train slow"                       every time that rank 0 comes to this point
    HEADWATER_FAULT_ONCE=/path/of/a/file              only if this file does not exist yet; it is made

Without the variable a point costs a look into a dictionary.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE, ONCE = "HEADWATER_FAULT", "HEADWATER_FAULT_ONCE"
PAUSE_SECONDS, SLOW_SECONDS = 3.0, 0.25
_passed: Counter[str] = Counter()


def fault(point: str) -> None:
    """Do here what the environment asks for, if it names this point (`_act`; slow: each time)."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    name, action, *conditions = wanted.split()
    if name != point:
        return
    limits = dict(condition.split("=") for condition in conditions)
    if os.environ.get("RANK", "0") != limits.get("rank", "0"):
        return
    if action == "slow":
        time.sleep(SLOW_SECONDS)
        return
    _passed[point] += 1
    if _passed[point] == int(limits.get("nth", "1")) and _is_first():
        _act(point, action)


def _is_first() -> bool:
    marker = os.environ.get(ONCE)
    if marker is None:
        return True
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _act(point: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "hang":
        time.sleep(86_400)
    elif action == "pause":
        time.sleep(PAUSE_SECONDS)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)
    else:
        raise ValueError(f"{VARIABLE}: {action!r} is none of kill, hang, pause, slow, full")
