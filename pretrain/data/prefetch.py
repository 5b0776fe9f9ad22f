"""A thread that works ahead of its consumer by a few items."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Runs an iterator in a thread, at most `depth` items ahead.

    An exception of the iterator is raised again in `get`, after the items made before it.
    The thread holds this object, so its owner must call `stop`.
    """

    def __init__(self, items: Iterator[Item], depth: int) -> None:
        self._items, self._depth = items, depth
        self._ready: deque[Item] = deque()
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        # Daemon: a consumer that dies without stop() must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="headwater-prefetch", daemon=True)
        self._thread.start()

    def get(self) -> Item:
        """The next item; waits for it.

        Raises:
            StopIteration: the iterator is exhausted.
            BaseException: whatever the iterator raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error is not None)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            assert self._error is not None
            raise self._error

    def stop(self) -> None:
        """End the thread and drop what it made. Waits for the item it is making now."""
        with self._changed:
            self._stopped = True
            self._error = self._error or StopIteration()
            self._ready.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # the garbage collector may call from any thread
            self._thread.join()

    def _run(self) -> None:
        error: BaseException = StopIteration()
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as raised:  # noqa: BLE001 (the consumer must see everything, and does)
            error = raised
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _put(self, item: Item) -> bool:
        """Hand over an item when there is room; False after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._depth)
            if not self._stopped:
                self._ready.append(item)
                self._changed.notify_all()
            return not self._stopped
