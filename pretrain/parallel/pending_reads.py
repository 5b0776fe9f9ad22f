"""What still reads weights and moments beside the training, and must be through before they change."""

from __future__ import annotations

import time
from collections.abc import Callable


class PendingReads:
    """Reads of an engine's state that other threads do. Whoever is about to write that state waits for them.

    Of the thread that trains: only it adds, waits and takes.
    """

    def __init__(self) -> None:
        self._finish: list[Callable[[], None]] = []
        self._waited_seconds = 0.0

    def add(self, finish: Callable[[], None]) -> None:
        """Begin a read; `finish` returns when it is through, and is called once."""
        self._finish.append(finish)

    def wait(self) -> None:
        """Wait until nothing is read any more; raises what a read failed with."""
        began = time.perf_counter()
        while self._finish:
            self._finish.pop()()
        self._waited_seconds += time.perf_counter() - began

    def take_waited_seconds(self) -> float:
        """Seconds that `wait` took since the last call of this."""
        seconds, self._waited_seconds = self._waited_seconds, 0.0
        return seconds
