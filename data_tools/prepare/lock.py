"""Who may work in a directory: one process alone, or several together.

The lock is on the directory itself, so no lock file stays behind, and it ends with its process, however that
ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_tools.errors import DataError

_PATIENCE_SECONDS, _RETRY_SECONDS = 10.0, 0.1  # while another process begins

Result = TypeVar("Result")


@dataclass(slots=True)
class Hold:
    """A held directory.

    Attributes:
        path: the directory.
        descriptor: of the directory; closing it ends the lock.
        alone: whether nobody else holds it.
    """

    path: Path
    descriptor: int
    alone: bool

    def share(self) -> None:
        """Let others hold it too.

        Raises:
            DataError: a run that wants it alone came between.
        """
        if _insist(lambda: _flock(self.descriptor, (fcntl.LOCK_SH,)), _PATIENCE_SECONDS) is None:
            raise _held_by_another(self.path)
        self.alone = False


@contextlib.contextmanager
def hold_directory(path: Path, shared: bool) -> Iterator[Hold]:
    """Hold a directory, which is made if needed.

    With `shared`, the first one holds it alone until it calls `Hold.share`, so that it can begin undisturbed;
    others wait for that. A directory that is left empty is removed again.

    Raises:
        DataError: another run holds it.
    """
    modes = (fcntl.LOCK_EX, fcntl.LOCK_SH) if shared else (fcntl.LOCK_EX,)
    hold = _insist(lambda: _try(path, modes), _PATIENCE_SECONDS if shared else 0.0)
    if hold is None:
        raise _held_by_another(path)
    try:
        yield hold
    finally:
        if hold.alone and _is_at(hold.descriptor, path):
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        os.close(hold.descriptor)


def _try(path: Path, modes: Sequence[int]) -> Hold | None:
    """Lock a directory in the first mode that is possible now; None if none is."""
    while True:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # a plan may hold a secret salt
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its owner removed it meanwhile
            continue
        mode = _flock(descriptor, modes)
        if mode is not None and _is_at(descriptor, path):
            return Hold(path, descriptor, alone=mode == fcntl.LOCK_EX)
        os.close(descriptor)
        if mode is None:
            return None


def _flock(descriptor: int, modes: Sequence[int]) -> int | None:
    for mode in modes:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return mode
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a directory still has its name: between open and lock, its owner may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _insist(attempt: Callable[[], Result | None], seconds: float) -> Result | None:
    """Repeat an attempt that returns None, for so long."""
    deadline = time.monotonic() + seconds
    while (result := attempt()) is None and time.monotonic() < deadline:
        time.sleep(_RETRY_SECONDS)
    return result


def _held_by_another(path: Path) -> DataError:
    return DataError(f"another run is writing {path}: wait for it, or end it")
