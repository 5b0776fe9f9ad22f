"""Trying again: how often, and how long to wait in between."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pretrain.data.access.errors import AccessError

Result = TypeVar("Result")

_jitter = random.SystemRandom().random
"""Not the generator of `random`: a training's seed must not depend on how often the network failed."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential back-off with jitter, bounded in number and length.

    Attributes:
        attempts: in all, the first one included.
        first_seconds: wait after the first failure; it doubles with each.
        longest_seconds: bound of a wait.
    """

    attempts: int
    first_seconds: float = 0.5
    longest_seconds: float = 20.0

    def delay(self, failures: int, draw: float) -> float:
        """Seconds to wait after 1 or more failures; `draw` in [0, 1) spreads ranks that fail together."""
        longest = min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - 1, 60))
        return longest * (0.5 + 0.5 * draw)


def with_retries(
    call: Callable[[], Result], retry: Retry, sleep: Callable[[float], object] = time.sleep
) -> Result:
    """Call until it succeeds, fails for good, or has failed `retry.attempts` times.

    Raises:
        AccessError: the last one; never transient.
    """
    for failures in itertools.count(1):
        try:
            return call()
        except AccessError as error:
            if not error.transient:
                raise
            if failures >= retry.attempts:
                text = f"{error} (tried {failures} times)"
                raise AccessError(text, damaged=error.damaged) from error
        sleep(retry.delay(failures, _jitter()))
    raise AssertionError("unreachable")
