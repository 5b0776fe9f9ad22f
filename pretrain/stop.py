"""Stopping in good order: what this rank was asked. All ranks share the answer, see `pretrain.consent`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from pretrain.config import exit_codes
from pretrain.config.run_files import STOP_FILE

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_SAME_REQUEST_SECONDS = 1.0
_LOOK_SECONDS = 1.0


class StopSignals:
    """Remembers SIGTERM, SIGINT, SIGUSR1 and SIGUSR2; the same one again, later, exits at once.

    One request often arrives as several signals: SLURM sends SIGUSR1 and then SIGTERM, launchers pass on what
    the terminal has already sent. So another signal, or the same one within a second, is the same request.

    Before `defer` is called there is nothing to save, and a signal ends the process at once. A thread
    listens: the main one may be waiting in a collective, where Python runs no signal handlers.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._received: dict[int, float] = {}
        self._deferred = False
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _leave_to_the_thread)
        threading.Thread(target=self._listen, args=(reading,), daemon=True, name="stop signals").start()

    def defer(self) -> None:
        """From now on a signal asks for a stop at the next step, with a save."""
        self._deferred = True

    def reason(self, time_limit_seconds: int = 0) -> str | None:
        """Why this rank wants to stop, or None.

        Args:
            time_limit_seconds: since this object was made; 0 for no limit.
        """
        if self._received:
            return signal.Signals(next(iter(self._received))).name
        if time_limit_seconds and time.monotonic() - self._began >= time_limit_seconds:
            return f"the time limit of {time_limit_seconds} s"
        return None

    def _listen(self, pipe: int) -> None:
        while numbers := os.read(pipe, 64):
            for number in numbers:
                if number in SIGNALS:
                    self._take(number)

    def _take(self, number: int) -> None:
        name = signal.Signals(number).name
        if not self._deferred:
            _exit(exit_codes.STOPPED, f"stopped by {name} before training began; nothing was lost")
        first = self._received.setdefault(number, time.monotonic())
        if time.monotonic() - first > _SAME_REQUEST_SECONDS:
            _exit(128 + number, f"ended at once by a second {name}; an earlier checkpoint stays")


class RunDirectoryGoneError(Exception):
    """Somebody removed the run directory of a run that trains."""

    exit_code = exit_codes.STORAGE


class StopFile:
    """A file named `stop` in the run directory: the request of a signal, where launchers pass none on.

    Looked for once a second; it is removed when it is found, so that the next attempt trains.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._look_at = 0.0
        self.found = False

    def look(self) -> bool:
        """Whether the file is, or was, there.

        Raises:
            RunDirectoryGoneError: the run directory was removed.
        """
        if self.found or time.monotonic() < self._look_at:
            return self.found
        self._look_at = time.monotonic() + _LOOK_SECONDS
        # By listing: a network file system may remember for a minute that a name is absent.
        try:
            names = os.listdir(self._run_dir)
        except FileNotFoundError:
            raise RunDirectoryGoneError(
                f"run_dir: {self._run_dir} was removed while the run trained; the same command begins anew"
            ) from None
        if STOP_FILE in names:
            (self._run_dir / STOP_FILE).unlink(missing_ok=True)
            self.found = True
        return self.found


def _leave_to_the_thread(_number: int, _frame: FrameType | None) -> None:
    pass


def _exit(code: int, text: str) -> None:
    # os.write, not print: the main thread may be holding the stream's lock.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"headwater: {text}\n".encode())
    os._exit(code)
