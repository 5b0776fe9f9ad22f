"""Processes that a command starts."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil


def descendants(pid: int) -> list[psutil.Process]:
    """The processes below one, at this moment."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until_gone(processes: Iterable[psutil.Process], seconds: float = 10.0) -> None:
    """Fail unless every process ends soon."""
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if _runs(process)]:
        assert time.monotonic() < deadline, f"still there after {seconds:.0f} s: {left}"
        time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
