"""Bytes of input files, wherever they are."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Protocol, Self

from data_tools.errors import DataError
from data_tools.reading.inputs import InputFile, Status
from data_tools.reading.lines import ByteStream
from data_tools.reading.remote import RangeSource, SeekableRemote, StreamSource, look_up_remote


class Source(ByteStream, Protocol):
    """The bytes of a file from some byte on, closed by `with`.

    It ends at the size that the file had when it was found; a shorter file is a DataError.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalSource:
    """A local file from `start` on, see `Source`."""

    def __init__(self, file: InputFile, start: int) -> None:
        self._url = file.url
        self._left = file.size - start
        self._file = open(file.url, "rb", buffering=0)
        if start:
            self._file.seek(start)

    def read(self, size: int, /) -> bytes:
        """See `ByteStream`."""
        if not self._left:
            return b""
        data = self._file.read(min(size, self._left))
        if not data:
            raise DataError(f"{self._url} became shorter by {self._left} bytes: it changed while it was read")
        self._left -= len(data)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def open_source(file: InputFile, start: int = 0, stop: int = 0) -> Source:
    """The bytes of a file from `start` on, of which those before `stop` are certain to be wanted.

    Raises:
        OSError: the local file cannot be opened.
    """
    if not file.remote:
        return LocalSource(file, start)
    return RangeSource(file, start, stop) if file.ranges else StreamSource(file, start)


def open_seekable(file: InputFile) -> Any:
    """A binary file to read at random.

    Raises:
        DataError: its server sends whole files only.
        OSError: the local file cannot be opened.
    """
    if not file.remote:
        return open(file.url, "rb")
    if not file.ranges:
        raise DataError(
            f"{file.url}: its server has no range requests, which {file.format} needs: download it"
        )
    return SeekableRemote(file)


def read_exactly(source: ByteStream, size: int) -> bytes:
    """The next `size` bytes, fewer only at the end."""
    parts, left = [], size
    while left and (part := source.read(left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def look_up(url: str) -> Status:
    """What a file is now.

    Raises:
        DataError: it cannot be looked up.
    """
    if "://" in url:
        return look_up_remote(url)
    try:
        status = os.stat(url)
    except OSError as error:
        raise DataError(f"cannot read {url}: {error.strerror}") from error
    return Status(status.st_size, str(status.st_mtime_ns))
