"""Promises about time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

MINUTE = 60.0


@contextmanager
def within(seconds: float = MINUTE) -> Iterator[None]:
    """Fails when the block took longer; a mistake is to be told soon, not after a hang."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"took {took:.1f} s"
