"""Shards that are files on this machine.

pread, not mmap: a file that shrinks under a map kills the process, a short read is an error with a name.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from data_tools.shard_format import MANIFEST_NAME, Manifest
from pretrain.data.access.errors import AccessError
from pretrain.data.access.source import fill

Buffer = Any  # an array: the operating system takes whatever is a buffer, which its type does not say

MAX_OPEN_SHARDS = 256
"""File descriptors that all corpora of a run keep; below the usual limit of 1024 for a process."""


class LocalShards:
    """A `Source` of files in the split's directory. Not thread-safe."""

    verified = False
    remote = False

    def __init__(self, manifest: Manifest, max_open: int = MAX_OPEN_SHARDS) -> None:
        self._manifest, self._max_open = manifest, max_open
        self._open: OrderedDict[int, int] = OrderedDict()
        weakref.finalize(self, _close_all, self._open)

    def read(self, shard: int, block: int, offset: int, buffer: memoryview) -> None:
        """See `Source`."""
        descriptor = self._open.get(shard)
        if descriptor is None:
            descriptor = self._descriptor(shard)
        else:
            self._open.move_to_end(shard)
        fill(descriptor, buffer, offset)

    def read_many(self, shards: Sequence[int], offsets: Sequence[int], buffers: Iterable[Buffer]) -> int:
        """Read into many buffers in one go, which costs half as much as one by one.

        Returns:
            Bytes that came; where they do not fill the buffers, `read` tells what is wrong.
        """
        done, opened, preadv = 0, self._open, os.preadv
        try:
            for shard, offset, buffer in zip(shards, offsets, buffers, strict=True):
                descriptor = opened.get(shard)
                if descriptor is None:
                    descriptor = self._descriptor(shard)
                done += preadv(descriptor, (buffer,), offset)
        except (OSError, AccessError):
            return -1
        return done

    def again(self, shard: int) -> bool:
        """See `Source`: there is no other copy."""
        return False

    def want(self, blocks: Iterable[int], lengths: bool = False) -> None:
        """See `Source`: the page cache reads ahead by itself."""

    def name(self, shard: int) -> str:
        """See `Source`."""
        return str(self._manifest.shard_path(shard))

    def stop(self) -> None:
        """See `Source`: a read of a file cannot be ended."""

    def close(self) -> None:
        """See `Source`."""
        _close_all(self._open)

    def _descriptor(self, shard: int) -> int:
        if len(self._open) >= self._max_open:
            self._close_oldest()
        while True:
            try:
                descriptor = os.open(self._manifest.shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._open:
                    self._close_oldest()
                    continue
                raise AccessError(error.strerror or str(error), damaged=self._is_missing(error)) from error
            self._open[shard] = descriptor
            return descriptor

    def _close_oldest(self) -> None:
        os.close(self._open.popitem(last=False)[1])

    def _is_missing(self, error: OSError) -> bool:
        """Whether one file is missing, not the whole directory, as when a mount is lost."""
        return isinstance(error, FileNotFoundError) and (self._manifest.directory / MANIFEST_NAME).exists()


def _close_all(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
