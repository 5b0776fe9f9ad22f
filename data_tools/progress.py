"""Progress of a long step: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_LINE_INTERVAL_SECONDS = 30.0


class Progress:
    """Counts bytes towards a total, and documents; shows rates on stderr. Use as a context manager."""

    def __init__(self, label: str, total_bytes: int) -> None:
        self._label, self._total = label, total_bytes
        self._done = self._documents = 0
        self._start = self._last_line = time.monotonic()
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total_bytes, desc=label, unit="B", unit_scale=True, leave=False, disable=not self._live
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, count: int, documents: int = 0) -> None:
        """Count `count` more bytes as done, and what they held."""
        self._done += count
        self._documents += documents
        now = time.monotonic()
        seconds = max(now - self._start, 1e-9)
        if self._documents:
            self._bar.set_postfix_str(f"{self._documents / seconds:,.0f} documents/s", refresh=False)
        self._bar.update(count)
        if not self._live and now - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._last_line = now
            print(self._line(seconds), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        rate = self._done / seconds
        left = max(self._total - self._done, 0) / max(rate, 1.0)
        documents = f", {self._documents / seconds:,.0f} documents/s" if self._documents else ""
        return (
            f"{self._label}: {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s"
            f"{documents}, about {left:.0f} s left"
        )
