"""Shards behind URLs, read block by block through range requests.

A block is fetched whole, so that its hash can be checked, and kept in memory: the samples of a shuffle window
come from the same few hundred blocks. Threads fetch what was announced by `want`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np
import xxhash

from data_tools.shard_format import Manifest
from pretrain.data.access.errors import AccessError
from pretrain.data.access.fetching import FetchThreads, check_running, wait_for
from pretrain.data.access.origin import Origin
from pretrain.data.access.retry import Retry, with_retries

AHEAD_SHARE = 4
"""One `want` may fill this part of the memory; more would drive out what is needed now."""


class RangeShards:
    """A `Source` of blocks in memory. Safe to call from several threads."""

    verified = True
    remote = True

    def __init__(
        self, manifest: Manifest, origin: Origin, retry: Retry, threads: int, memory_bytes: int
    ) -> None:
        """Set up; nothing is fetched yet.

        Args:
            manifest: the split.
            origin: where its shards lie.
            retry: for each block.
            threads: blocks fetched at once.
            memory_bytes: what blocks in memory may take; one block always fits.
        """
        self._manifest, self._origin, self._retry, self._threads = manifest, origin, retry, threads
        rows = manifest.blocks
        self._ends = rows["offset"].astype(np.int64) + rows["tokens"] * np.int64(
            manifest.token_dtype.itemsize
        )
        self._memory, self._used = memory_bytes, 0
        self._pieces: OrderedDict[tuple[int, bool], tuple[Future[bytes], int]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = self._new_pool()

    def read(self, shard: int, block: int, offset: int, buffer: memoryview) -> None:
        """See `Source`."""
        lengths = offset >= self._ends[block]
        begin, _ = self._place(block, lengths)
        payload = self._payload((block, bool(lengths)))
        buffer.cast("B")[:] = payload[offset - begin : offset - begin + buffer.nbytes]

    def gather(self, *_: object) -> bool:
        """See `Source`: never."""
        return False

    def again(self, shard: int) -> bool:
        """See `Source`: every block was checked, and fetched again, when it came."""
        return False

    def want(self, blocks: Iterable[int], lengths: bool = False) -> None:
        """See `Source`."""
        room = self._memory // AHEAD_SHARE
        with self._lock:
            for block in blocks:
                key = (int(block), lengths)
                if key not in self._pieces:
                    room -= self._start(key)[1]
                    if room <= 0:
                        return

    def name(self, shard: int) -> str:
        """See `Source`."""
        return self._origin.name(self._manifest.shards[shard].path)

    def stop(self) -> None:
        """See `Source`."""
        self._pool.stop.set()

    def close(self) -> None:
        """See `Source`."""
        with self._lock:
            pool, self._pool = self._pool, self._new_pool()
            self._pieces.clear()
            self._used = 0
        pool.end()

    def _new_pool(self) -> FetchThreads:
        return FetchThreads(self._threads, "headwater-range")

    def _payload(self, key: tuple[int, bool]) -> bytes:
        with self._lock:
            found = self._pieces.get(key)
            if found is None:
                found = self._start(key)
            else:
                self._pieces.move_to_end(key)
            stop = self._pool.stop
        try:
            return wait_for(found[0], stop)
        except AccessError:
            with self._lock:
                if self._pieces.get(key) is found:  # a later read tries anew
                    del self._pieces[key]
                    self._used -= found[1]
            raise

    def _start(self, key: tuple[int, bool]) -> tuple[Future[bytes], int]:
        """Queue the fetch of a piece; the lock is held."""
        size = self._place(*key)[1]
        found = self._pieces[key] = self._pool.submit(self._fetch, *key, self._pool.stop), size
        self._used += size
        while self._used > self._memory and len(self._pieces) > 1:
            _, (future, freed) = self._pieces.popitem(last=False)
            future.cancel()
            self._used -= freed
        return found

    def _place(self, block: int, lengths: bool) -> tuple[int, int]:
        """(first byte, length) in its shard of a block's tokens, or of the lengths behind them."""
        layout = self._manifest.layout(block)
        if not lengths:
            return layout.tok
        end = layout.sent or layout.doc
        return layout.doc.offset, end.offset + end.length - layout.doc.offset

    def _fetch(self, block: int, lengths: bool, stop: threading.Event) -> bytes:
        begin, length = self._place(block, lengths)
        row = self._manifest.blocks[block]
        path = self._manifest.shards[int(row["shard"])].path
        wrong = 0

        def once() -> bytes:
            nonlocal wrong
            check_running(stop)
            payload = self._origin.read(path, begin, length, stop)
            if self._digest(block, lengths, payload) != int(row["lengths_xxh3" if lengths else "xxh3"]):
                wrong += 1  # once may be the network's fault, twice is the shard's
                what = "lengths of documents" if lengths else "tokens"
                raise AccessError(f"the {what} do not match their hash", transient=wrong < 2, damaged=True)
            return payload

        return with_retries(once, self._retry, stop.wait)

    def _digest(self, block: int, lengths: bool, payload: bytes) -> int:
        layout = self._manifest.layout(block)
        if not lengths:
            return xxhash.xxh3_64_intdigest(payload)
        digest = xxhash.xxh3_64(payload[: layout.doc.length])
        if layout.sent:
            digest.update(payload[layout.sent.offset - layout.doc.offset :])
        return digest.intdigest()
