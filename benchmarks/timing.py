"""Time by the clock and of processors."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from typing import NamedTuple


class Seconds(NamedTuple):
    """What something took: by the clock, and of processors, all processes together."""

    clock: float
    cpu: float


@contextlib.contextmanager
def taken() -> Iterator[list[Seconds]]:
    """Append what the block took to the list that it gives."""
    found: list[Seconds] = []
    cpu, begin = used(), time.perf_counter()
    yield found
    found.append(Seconds(time.perf_counter() - begin, used() - cpu))


def used() -> float:
    """Processor seconds of this process and of its descendants that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))
