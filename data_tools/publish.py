"""Publish a directory or file whole or not at all: write under a temporary name, fsync, rename."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.plain_json import to_json


@contextmanager
def publish_directory(target: Path) -> Iterator[Path]:
    """Give an empty directory to fill; it becomes `target` when the block ends without an exception.

    What an earlier, killed run left under the temporary name is thrown away. On an exception nothing
    is published and nothing stays behind.

    Raises:
        DataError: `target` is in the way, or another process is writing it at this moment.
    """
    target = Path(os.path.abspath(target))
    require_absent(target)
    partial = target.parent / f".{target.name}.partial"
    lock = _lock_directory(partial)
    try:
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        try:
            yield partial
            fsync_tree(partial)
            require_absent(target)
            partial.rename(target)
            fsync_directory(target.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def require_absent(target: Path) -> None:
    """Refuse a directory to publish that exists, unless it is empty.

    Raises:
        DataError: `target` is in the way, or its directory cannot be written.
    """
    empty = target.is_dir() and not any(target.iterdir())
    if os.path.lexists(target) and not empty:
        raise DataError(f"{target} exists: remove it or choose another --out")
    require_directory(target.parent)


def require_new_file(target: Path) -> None:
    """Refuse a file to write that exists; a directory is in its way also if it is empty.

    Raises:
        DataError: `target` is in the way, or its directory cannot be written.
    """
    require_file(target)
    require_absent(target)


def require_file(target: Path) -> None:
    """Refuse what neither is a file to replace nor can become one.

    Raises:
        DataError: `target` is a directory, or its own cannot be written.
    """
    if target.is_dir():
        raise DataError(f"{target} is a directory; --out names the file to write")
    require_directory(target.parent)


def require_directory(target: Path) -> None:
    """Refuse what neither is a directory to write into nor can become one.

    Raises:
        DataError: `target` or a parent of it is something else or cannot be written; the error names it.
    """
    target = Path(os.path.abspath(target))
    for path in (target, *target.parents):
        if path.is_dir():
            if not os.access(path, os.W_OK | os.X_OK):
                raise DataError(f"{path} cannot be written into; choose another --out")
            return
        if os.path.lexists(path):
            raise DataError(f"{path} is no directory; choose another --out")


def write_file(path: Path, content: bytes) -> None:
    """Replace or create a file in one step: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write a JSON file with `write_file`; NaN and infinities become null. `default` as for `json.dumps`."""
    write_file(path, json_file(value, default))


def json_file(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """What `write_json` writes."""
    return (to_json(value, indent=1, default=default) + "\n").encode()


def _lock_directory(path: Path) -> int:
    """Create a directory if needed and lock it; the lock ends when the returned descriptor is closed.

    The lock is on the directory itself, so no lock file stays behind. Between open and lock its owner
    may have renamed it away, hence the loop.
    """
    while True:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise DataError(f"another process is writing {path}: wait for it, or end it") from error
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # renamed away: make a new one
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Make everything below a directory durable."""
    for path, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(path, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_directory(Path(path))


def fsync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
