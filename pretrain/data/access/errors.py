"""Why bytes could not be had."""

from __future__ import annotations


class AccessError(Exception):
    """One read that failed; whoever knows the block turns it into a `DataError` that names it.

    Attributes:
        transient: trying again may help (a dropped connection, a busy server), it is not the file's fault.
    """

    def __init__(self, problem: str, transient: bool = False) -> None:
        super().__init__(problem)
        self.transient = transient


class NotFound(AccessError):
    """There is no such file."""


class NoRanges(AccessError):
    """The source cannot give a part of a file, only the whole of it."""
