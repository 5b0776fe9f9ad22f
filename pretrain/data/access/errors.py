"""Why bytes could not be had."""

from __future__ import annotations


class AccessError(Exception):
    """One read that failed; whoever knows the block turns it into a `DataError` that names it.

    Attributes:
        transient: trying again may help (a dropped connection, a busy server), it is not the file's fault.
        damaged: it is the file's fault for certain: it is not there, too short, or not what was written. All
            else (access denied, a server that stays busy, no descriptors left) says nothing about the file.
    """

    def __init__(self, problem: str, transient: bool = False, damaged: bool = False) -> None:
        super().__init__(problem)
        self.transient, self.damaged = transient, damaged


class NotFound(AccessError):
    """There is no such file."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, damaged=True)


class NoRanges(AccessError):
    """The source cannot give a part of a file, only the whole of it."""
