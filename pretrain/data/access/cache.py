"""A directory of shards on a local disk, shared by all processes of a node and bounded in size.

    <xxh3_128>.tar        a whole shard, checked when it came; its modification time is that of its last use
    <xxh3_128>.tar.part   one that is being fetched, locked by the process that does; counts with full size
    room.lock             held for moments, while a process makes room

A shard appears by rename, so what has the final name is whole. A process that dies lets go of its locks; the
next one that wants the shard starts it again. Shards that were not used for longest are removed first. A file
that somebody has open keeps its content until it is closed, so removal never disturbs a reader.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from data_tools.shard_format import ShardInfo
from pretrain.data.access.errors import AccessError

SUFFIX, PART = ".tar", ".tar.part"
POLL_SECONDS = 0.1
TOUCH_SECONDS = 30.0
"""How exact the time of last use is."""


class ShardCache:
    """Shards by content. Any number of threads and processes may use one directory."""

    def __init__(self, directory: Path, max_bytes: int, patience_seconds: float = 600.0) -> None:
        """Set up; nothing is touched yet.

        Args:
            directory: on a local disk.
            max_bytes: what all shards in it may take, those being fetched included.
            patience_seconds: how long to wait for room that other processes' fetches take.
        """
        self.directory, self._max_bytes, self._patience = directory, max_bytes, patience_seconds
        self._touched: dict[str, float] = {}

    def open(self, shard: ShardInfo) -> int | None:
        """A descriptor of a shard that is here, for the caller to close; None where it is not."""
        try:
            descriptor = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AccessError(f"cannot open the cached copy {self._path(shard)}: {error.strerror}") from error
        now = time.monotonic()
        if now - self._touched.get(shard.xxh3_128, -TOUCH_SECONDS) >= TOUCH_SECONDS:
            self._touched[shard.xxh3_128] = now
            with contextlib.suppress(OSError):  # another user's file; it then goes earlier than it should
                os.utime(descriptor)
        return descriptor

    def fetch(self, shard: ShardInfo, fill: Callable[[int], None]) -> None:
        """Bring a shard in, unless another process did so meanwhile.

        Args:
            shard: what to bring in.
            fill: writes the whole shard into a descriptor, at its place.

        Raises:
            AccessError: it cannot be had, is not what the manifest says, or there is no room for it.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._claimed(shard) as descriptor:
                if descriptor is None:
                    return
                self._reserve(descriptor, shard.bytes)
                self._fill_checked(descriptor, shard, fill)
                os.utime(descriptor)
                with self._room():  # or a process that adds up sizes could see neither of the two names
                    self._part(shard).rename(self._path(shard))
        except OSError as error:
            raise AccessError(
                f"cannot write to the shard cache {self.directory}: {error.strerror}; set data.cache_dir "
                "to a disk with room"
            ) from error

    def discard(self, shard: ShardInfo) -> None:
        """Remove a damaged copy."""
        self._path(shard).unlink(missing_ok=True)

    def _path(self, shard: ShardInfo) -> Path:
        return self.directory / (shard.xxh3_128 + SUFFIX)

    def _part(self, shard: ShardInfo) -> Path:
        return self.directory / (shard.xxh3_128 + PART)

    @contextlib.contextmanager
    def _claimed(self, shard: ShardInfo) -> Iterator[int | None]:
        """The locked file to fetch a shard into; None when the shard is here. Waits for another fetch."""
        part = self._part(shard)
        while True:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not _is_at(descriptor, part):  # renamed or removed by the one that had the lock
                    continue
                if self._path(shard).exists():
                    part.unlink()
                    yield None
                else:
                    try:
                        yield descriptor
                    except BaseException:
                        part.unlink(missing_ok=True)
                        raise
                return
            finally:
                os.close(descriptor)

    def _fill_checked(self, descriptor: int, shard: ShardInfo, fill: Callable[[int], None]) -> None:
        for attempt in (1, 2):
            fill(descriptor)
            if _digest(descriptor, shard.bytes) == shard.xxh3_128:
                return
            if attempt == 2:
                raise AccessError("what came does not match the hash in its manifest", damaged=True)

    def _reserve(self, descriptor: int, size: int) -> None:
        """Give an empty file its full size, within the bound and on the disk; removes older shards for it."""
        os.ftruncate(descriptor, 0)
        if size > self._max_bytes:
            raise AccessError(f"a shard has {size} bytes, data.cache_gb allows {self._max_bytes}; raise it")
        give_up = time.monotonic() + self._patience
        while not self._reserve_now(descriptor, size):
            if time.monotonic() > give_up:
                raise AccessError(
                    f"no room for {size} bytes in {self.directory}: other shards are being fetched into "
                    "all of it; raise data.cache_gb"
                )
            time.sleep(POLL_SECONDS)

    def _reserve_now(self, descriptor: int, size: int) -> bool:
        with self._room():
            used, whole = self._contents()
            while used + size > self._max_bytes:
                if not whole:
                    return False
                used -= _remove(whole.pop(0))
            while True:
                try:
                    os.posix_fallocate(descriptor, 0, size)
                    return True
                except OSError as error:
                    if error.errno != errno.ENOSPC or not whole:
                        raise
                    os.ftruncate(descriptor, 0)
                    _remove(whole.pop(0))

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """The one process that changes what is in the directory, but for removing."""
        room = os.open(self.directory / "room.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(room, fcntl.LOCK_EX)
            yield
        finally:
            os.close(room)

    def _contents(self) -> tuple[int, list[tuple[int, int, str]]]:
        """(bytes of all shards, (time of last use, bytes, path) of the whole ones, oldest first)."""
        used, whole = 0, []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    size, used_at = entry.stat().st_size, entry.stat().st_mtime_ns
                    if entry.name.endswith(PART) and _abandoned(entry.path):
                        continue
                    if entry.name.endswith(SUFFIX):
                        whole.append((used_at, size, entry.path))
                    used += size
        return used, sorted(whole)


def _remove(found: tuple[int, int, str]) -> int:
    Path(found[2]).unlink(missing_ok=True)
    return found[1]


def _abandoned(part: str) -> bool:
    """Remove a part whose process died; False where it lives."""
    descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, Path(part)):
            os.unlink(part)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _digest(descriptor: int, size: int) -> str:
    """Hash of a file; a wrong size has none."""
    if os.fstat(descriptor).st_size != size:
        return ""
    digest, done = xxhash.xxh3_128(), 0
    while part := os.pread(descriptor, 4 << 20, done):
        digest.update(part)
        done += len(part)
    return digest.hexdigest()
