"""Shards that are fetched whole into the cache on disk when they are first needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np

from data_tools.shard_format import Manifest, ShardInfo
from pretrain.data.access.cache import ShardCache
from pretrain.data.access.errors import AccessError, NoRanges
from pretrain.data.access.origin import PIECE_BYTES, Origin
from pretrain.data.access.retry import Retry, with_retries
from pretrain.data.access.source import fill


class CachedShards:
    """A `Source` of whole shards in a `ShardCache`."""

    verified = False  # checked when it came, but a disk may forget
    remote = True

    def __init__(
        self, manifest: Manifest, origin: Origin, cache: ShardCache, retry: Retry, threads: int
    ) -> None:
        self._manifest, self._origin, self._cache, self._retry = manifest, origin, cache, retry
        self._threads = threads
        self._shard_of = manifest.blocks["shard"]
        self._tried_again: set[int] = set()
        self._fetches: dict[int, Future[None]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def read(self, shard: int, block: int, offset: int, buffer: memoryview) -> None:
        """See `Source`. Opens the file for each read: another process may have removed it in between."""
        info = self._manifest.shards[shard]
        while (descriptor := self._cache.open(info)) is None:
            self._fetched(shard)
        try:
            return fill(descriptor, buffer, offset)
        except AccessError:
            if not self.again(shard):
                raise
        finally:
            os.close(descriptor)
        self.read(shard, block, offset, buffer)

    def again(self, shard: int) -> bool:
        """See `Source`: once, from the origin."""
        if shard in self._tried_again:
            return False
        self._tried_again.add(shard)
        self._cache.discard(self._manifest.shards[shard])
        return True

    def want(self, blocks: Iterable[int], lengths: bool = False) -> None:
        """See `Source`."""
        for shard in np.unique(self._shard_of[np.fromiter(blocks, dtype=np.int64)]).tolist():
            descriptor = self._cache.open(self._manifest.shards[shard])
            if descriptor is None:
                self._begin(shard)
            else:
                os.close(descriptor)

    def name(self, shard: int) -> str:
        """See `Source`."""
        return self._origin.name(self._manifest.shards[shard].path)

    def close(self) -> None:
        """See `Source`."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._fetches.clear()
            self._stop.set()
            self._stop = threading.Event()
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, shard: int) -> Future[None]:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="headwater-shard")
            if shard not in self._fetches:
                self._fetches[shard] = self._pool.submit(self._fetch, shard, self._stop)
            return self._fetches[shard]

    def _fetched(self, shard: int) -> None:
        """Wait until a shard has been fetched."""
        future = self._begin(shard)
        try:
            future.result()
        except CancelledError as error:
            raise AccessError("the reader was closed") from error
        finally:
            with self._lock:
                if self._fetches.get(shard) is future:
                    del self._fetches[shard]

    def _fetch(self, shard: int, stop: threading.Event) -> None:
        info = self._manifest.shards[shard]

        def fill_from_origin(descriptor: int) -> None:
            try:
                for start in range(0, info.bytes, PIECE_BYTES):
                    self._copy_piece(info, start, descriptor, stop)
            except NoRanges:
                with_retries(lambda: self._copy_whole(info, descriptor, stop), self._retry, stop.wait)

        self._cache.fetch(info, fill_from_origin)

    def _copy_piece(self, info: ShardInfo, start: int, descriptor: int, stop: threading.Event) -> None:
        """Copy a piece, with retries of its own."""

        def read() -> bytes:
            _check_running(stop)
            return self._origin.read(info.path, start, min(PIECE_BYTES, info.bytes - start))

        _write(descriptor, with_retries(read, self._retry, stop.wait), start)

    def _copy_whole(self, info: ShardInfo, descriptor: int, stop: threading.Event) -> None:
        """Copy a shard in one go; one attempt."""
        done = 0
        for piece in self._origin.stream(info.path):
            _check_running(stop)
            if done + len(piece) > info.bytes:
                raise AccessError(f"the file is longer than the {info.bytes} bytes of the manifest")
            done = _write(descriptor, piece, done)
        if done != info.bytes:
            raise AccessError(f"the file ends too early, after {done} of {info.bytes} bytes", transient=True)


def _check_running(stop: threading.Event) -> None:
    if stop.is_set():
        raise AccessError("the reader was closed")


def _write(descriptor: int, piece: bytes, offset: int) -> int:
    """Write all of a piece; returns where it ends."""
    view = memoryview(piece)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    return offset
