"""Progress of a long step in bytes: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_LINE_INTERVAL_SECONDS = 30.0


class Progress:
    """Counts bytes towards a total and shows them on stderr. Use as a context manager."""

    def __init__(self, label: str, total_bytes: int) -> None:
        self._label, self._total = label, total_bytes
        self._done = 0
        self._start = self._last_line = time.monotonic()
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total_bytes, desc=label, unit="B", unit_scale=True, leave=False, disable=not self._live
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        """Count `count` more bytes as done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if not self._live and now - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._last_line = now
            rate = self._done / 1e6 / max(now - self._start, 1e-9)
            line = f"{self._label}: {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB, {rate:.1f} MB/s"
            print(line, file=sys.stderr, flush=True)
