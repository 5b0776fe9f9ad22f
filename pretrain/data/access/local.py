"""Shards that are files on this machine."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from data_tools.shard_format import MANIFEST_NAME, Manifest
from pretrain.data.access.errors import AccessError
from pretrain.data.access.source import fill

MAX_OPEN_SHARDS = 128
"""Of all corpora of a run. Each takes two file descriptors; the usual limit is 1024 for a process."""
MAX_PIECES = 128
"""Pieces copied by one system call, which then costs next to nothing for each."""
MAX_PIECE_BYTES = 1 << 16
"""Larger ones gain nothing."""


class _OpenShard:
    """A file and a map of it, both closed when nobody holds this any more.

    Attributes:
        file: descriptor.
        pages: the file as it was when it was opened; empty where it cannot be mapped.
    """

    def __init__(self, file: int) -> None:
        self.file, self.pages = file, memoryview(b"")
        weakref.finalize(self, os.close, file)
        with contextlib.suppress(OSError, ValueError):
            self.pages = memoryview(mmap.mmap(file, 0, prot=mmap.PROT_READ))

    def is_whole(self) -> bool:
        """Whether the file is as long as its map: the last page of a shorter one ends in zeros."""
        return os.lseek(self.file, 0, os.SEEK_END) >= len(self.pages)


class LocalShards:
    """A `Source` of files in the split's directory. Not thread-safe.

    Short pieces come from maps of the files, so that a batch takes few system calls. It is the kernel that
    reads the maps: it copies pieces into memory of its own. Where a file shrank or its storage fails, that is
    an error; a process that looks at such a page itself is killed (SIGBUS).
    """

    verified = False
    remote = False

    def __init__(self, manifest: Manifest, max_open: int = MAX_OPEN_SHARDS) -> None:
        self._manifest, self._max_open = manifest, max_open
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._gathered: _Memory | None = None

    def read(self, shard: int, block: int, offset: int, buffer: memoryview) -> None:
        """See `Source`."""
        fill(self._opened(shard).file, buffer, offset)

    def gather(
        self, shards: Sequence[int], offsets: Sequence[int], sizes: Sequence[int], buffer: memoryview
    ) -> bool:
        """See `Source`."""
        if max(sizes, default=0) > MAX_PIECE_BYTES:
            return False
        done = 0
        try:
            if self._gathered is None or self._gathered.process != os.getpid():
                self._gathered = _Memory()
            most = min(MAX_PIECES, self._max_open)  # so that what is in use is not the oldest
            for begin in range(0, len(sizes), most):
                some = slice(begin, begin + most)
                used = {shard: self._opened(shard) for shard in set(shards[some])}
                pieces = [
                    used[shard].pages[offset : offset + size]
                    for shard, offset, size in zip(shards[some], offsets[some], sizes[some], strict=True)
                ]
                end = done + sum(sizes[some])
                if not self._gathered.copy(pieces, buffer[done:end]):
                    return False
                if not all(shard.is_whole() for shard in used.values()):
                    return False
                done = end
        except (OSError, AccessError):
            return False
        return True

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
        self._open.clear()
        self._gathered = None

    def _opened(self, shard: int) -> _OpenShard:
        found = self._open.get(shard)
        if found is not None:
            self._open.move_to_end(shard)
            return found
        if len(self._open) >= self._max_open:
            self._open.popitem(last=False)
        while True:
            try:
                file = os.open(self._manifest.shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._open:
                    self._open.popitem(last=False)
                    continue
                raise AccessError(error.strerror or str(error), damaged=self._is_missing(error)) from error
            found = self._open[shard] = _OpenShard(file)
            return found

    def _is_missing(self, error: OSError) -> bool:
        """Whether one file is missing, not the whole directory, as when a mount is lost."""
        return isinstance(error, FileNotFoundError) and (self._manifest.directory / MANIFEST_NAME).exists()


class _Memory:
    """Memory of the kernel that pieces are copied into. Of one process: a fork shares it.

    Attributes:
        process: id of that process.
    """

    def __init__(self) -> None:
        """Raises an OSError on systems other than Linux."""
        if not hasattr(os, "memfd_create"):
            raise OSError("no memfd_create")
        self.process, self._file = os.getpid(), os.memfd_create("headwater", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def copy(self, pieces: Sequence[memoryview], buffer: memoryview) -> bool:
        """Fill a buffer with pieces; False where they could not all be read."""
        size = buffer.nbytes
        return os.pwritev(self._file, pieces, 0) == size and os.preadv(self._file, (buffer,), 0) == size
