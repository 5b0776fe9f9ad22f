"""Shards that are fetched whole into the cache on disk when they are first needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial

import numpy as np

from data_tools.errors import DataError
from data_tools.shard_format import Manifest, ShardInfo
from pretrain.data.access.cache import ShardCache
from pretrain.data.access.errors import AccessError, NoRanges
from pretrain.data.access.fetching import FetchThreads, check_running, wait_for
from pretrain.data.access.origin import PIECE_BYTES, Origin
from pretrain.data.access.retry import Retry, with_retries
from pretrain.data.access.source import Source, fill

WINDOW_SHARDS = 600
"""Shards that a shuffle window may read from: one for each of its 512 groups, and some that lie in two."""


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
        self._pool = self._new_pool()
        self._lock = threading.Lock()

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

    def gather(self, *_: object) -> bool:
        """See `Source`: never."""
        return False

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

    def window_bytes(self, tokens: int | None) -> int:
        """What shuffled samples of the first `tokens` tokens need in the cache at a time; None of all."""
        starts = np.cumsum([0] + [shard.tokens for shard in self._manifest.shards])
        last = None if tokens is None else int(np.searchsorted(starts, tokens))
        sizes = (shard.bytes for shard in self._manifest.shards[:last])
        return sum(sorted(sizes, reverse=True)[:WINDOW_SHARDS])

    def stop(self) -> None:
        """See `Source`."""
        self._pool.stop.set()

    def close(self) -> None:
        """See `Source`."""
        with self._lock:
            pool, self._pool = self._pool, self._new_pool()
            self._fetches.clear()
        pool.end()

    def _new_pool(self) -> FetchThreads:
        return FetchThreads(self._threads, "headwater-shard")

    def _begin(self, shard: int) -> Future[None]:
        with self._lock:
            if shard in self._fetches:
                return self._fetches[shard]
            future = self._fetches[shard] = self._pool.submit(self._fetch, shard, self._pool.stop)
        future.add_done_callback(partial(self._forget, shard))  # not under the lock: it may be done already
        return future

    def _forget(self, shard: int, future: Future[None]) -> None:
        """After success a later fetch begins anew; one that failed stays for the read that waits for it."""
        if future.cancelled() or future.exception() is None:
            self._drop(shard, future)

    def _drop(self, shard: int, future: Future[None]) -> None:
        with self._lock:
            if self._fetches.get(shard) is future:
                del self._fetches[shard]

    def _fetched(self, shard: int) -> None:
        """Wait until a shard has been fetched."""
        stop = self._pool.stop
        check_running(stop)
        future = self._begin(shard)
        try:
            wait_for(future, stop)
        finally:
            self._drop(shard, future)

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
            check_running(stop)
            return self._origin.read(info.path, start, min(PIECE_BYTES, info.bytes - start), stop)

        _write(descriptor, with_retries(read, self._retry, stop.wait), start)

    def _copy_whole(self, info: ShardInfo, descriptor: int, stop: threading.Event) -> None:
        """Copy a shard in one go; one attempt."""
        done = 0
        for piece in self._origin.stream(info.path, stop):
            check_running(stop)
            if done + len(piece) > info.bytes:
                raise AccessError(
                    f"the file is longer than the {info.bytes} bytes of the manifest", damaged=True
                )
            done = _write(descriptor, piece, done)
        if done != info.bytes:
            problem = f"the file ends too early, after {done} of {info.bytes} bytes"
            raise AccessError(problem, transient=True, damaged=True)


def check_cache_room(sources: Iterable[Source], cache_gb: float, tokens: int | None = None) -> None:
    """Refuse a cache that shuffled samples would empty as fast as they fill it, a shard for each.

    Args:
        sources: of all corpora of a run.
        cache_gb: `data.cache_gb`.
        tokens: used of each corpus, from its beginning; None uses all of it.

    Raises:
        DataError: the cache is too small.
    """
    cached = [source for source in sources if isinstance(source, CachedShards)]
    needed = sum(source.window_bytes(tokens) for source in cached) / 2**30
    if needed > cache_gb:
        raise DataError(
            f"data.cache_gb: {cache_gb:g} is less than the {needed:.6g} GiB of shards that shuffled samples "
            f"come from at a time ({len(cached)} corpora behind it, up to {WINDOW_SHARDS} shards each); "
            "each sample could fetch a whole shard again. Set data.cache_gb to more than "
            f"{needed:.6g}, read by range requests (data.access: range), or prepare smaller shards"
        )


def _write(descriptor: int, piece: bytes, offset: int) -> int:
    """Write all of a piece; returns where it ends."""
    view = memoryview(piece)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    return offset
