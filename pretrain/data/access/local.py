"""Shards that are files on this machine.

pread, not mmap: a file that shrinks under a map kills the process, a short read is an error with a name.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable

from data_tools.shard_format import Manifest
from pretrain.data.access.errors import AccessError
from pretrain.data.access.source import fill

MAX_OPEN_SHARDS = 256
"""File descriptors kept; below the usual limit of 1024 for a process."""


class LocalShards:
    """A `Source` of files in the split's directory. Not thread-safe."""

    verified = False
    remote = False

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
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

    def again(self, shard: int) -> bool:
        """See `Source`: there is no other copy."""
        return False

    def want(self, blocks: Iterable[int], lengths: bool = False) -> None:
        """See `Source`: the page cache reads ahead by itself."""

    def name(self, shard: int) -> str:
        """See `Source`."""
        return str(self._manifest.shard_path(shard))

    def close(self) -> None:
        """See `Source`."""
        _close_all(self._open)

    def _descriptor(self, shard: int) -> int:
        if len(self._open) >= MAX_OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        try:
            descriptor = os.open(self._manifest.shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise AccessError(error.strerror or str(error)) from error
        self._open[shard] = descriptor
        return descriptor


def _close_all(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
