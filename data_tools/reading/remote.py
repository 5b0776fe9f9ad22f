"""Files behind URLs, through fsspec: http(s) by its session, everything else by its file systems.

Every request is tried again a few times with growing pauses; an answer of the wrong length counts as failed.
"""

from __future__ import annotations

import inspect
import io
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from data_tools.errors import DataError
from data_tools.reading import http
from data_tools.reading.inputs import InputFile, Status

PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""Pauses between the attempts of a request: one attempt more than pauses."""

REQUEST_BYTES = 8 << 20
_TAIL_BYTES = 256 << 10
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3"}

Answer = TypeVar("Answer")


def file_system(url: str) -> Any:
    """The fsspec file system of a URL; its settings come from fsspec's and the service's own configuration.

    Raises:
        DataError: its library is missing, or the protocol is not known or not supported.
    """
    protocol = url.partition("://")[0]
    try:
        if protocol in http.PROTOCOLS:
            return http.file_system()
        import fsspec
        from fsspec.config import apply_config

        kind = fsspec.get_filesystem_class(protocol)
        # Asked before it is made: one that fails half-way prints a traceback when it is collected.
        inspect.signature(kind.__init__).bind(None, **apply_config(kind, {}))
        return fsspec.filesystem(protocol)
    except TypeError as error:  # it wants to be told more than a protocol
        raise DataError(f"cannot read {url}: {protocol}:// is not supported: download it first") from error
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(protocol)
        advice = f": pip install 'headwater[{extra}]'" if extra else ""
        raise DataError(f"cannot read {url}: {error}{advice}") from error


def attempt(url: str, request: Callable[[], Answer]) -> Answer:
    """The answer of a request, which is tried again where that may help.

    Raises:
        DataError: it failed for good; names the URL and why.
    """
    for pause in (*PAUSES_SECONDS, None):
        try:
            return request()
        except DataError:
            raise
        except Exception as error:  # three libraries, three families of exceptions
            if pause is None or not _passing(error):
                tries = f" after {len(PAUSES_SECONDS) + 1} attempts" if pause is None else ""
                raise DataError(f"cannot read {url}{tries}: {type(error).__name__}: {error}") from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _passing(error: Exception) -> bool:
    """Whether a failure may be over soon: not for what is missing, forbidden or wrong by itself."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in (408, 425, 429)
    return not isinstance(error, FileNotFoundError | PermissionError | TypeError | ValueError)


def look_up_remote(url: str) -> Status:
    """Size and version of a file now.

    Raises:
        DataError: it cannot be looked up, or its size is not known.
    """
    if url.startswith(http.URLS):
        return attempt(url, lambda: http.look_up(url))
    files = file_system(url)
    files.invalidate_cache()
    return status_of(url, attempt(url, lambda: files.info(url)))


def status_of(url: str, info: dict[str, Any]) -> Status:
    """What fsspec tells of a file."""
    if info.get("size") is None:
        raise DataError(f"{url}: its size is not known: download it first")
    names = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created")
    version = next((str(info[name]) for name in names if info.get(name)), "")
    return Status(int(info["size"]), version)


def fetch(file: InputFile, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file.

    Raises:
        DataError: they do not come.
    """

    def request() -> bytes:
        if file.url.startswith(http.URLS):
            data = http.fetch(file, start, stop)
        else:
            data = file_system(file.url).cat_file(file.url, start=start, end=stop)
        if len(data) != stop - start:
            raise EOFError(f"{len(data)} bytes came of the {stop - start} from byte {start} on")
        return data

    return attempt(file.url, request)


class RangeSource:
    """A file from `start` on by range requests: large ones before `stop`, then small ones."""

    def __init__(self, file: InputFile, start: int, stop: int) -> None:
        self._file = file
        self._at = start
        self._stop = stop
        self._held = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """See `ByteStream`."""
        if not self._held and self._at < self._file.size:
            inside = self._stop - self._at
            wanted = min(inside, REQUEST_BYTES) if inside > 0 else _TAIL_BYTES
            stop = min(self._at + wanted, self._file.size)
            self._held = memoryview(fetch(self._file, self._at, stop))
            self._at = stop
        data, self._held = self._held[:size], self._held[size:]
        return data.tobytes()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = memoryview(b"")


class StreamSource:
    """A file of a server without range requests: when the connection breaks, it is read from 0 again."""

    def __init__(self, file: InputFile, start: int) -> None:
        self._file = file
        self._at = start
        self._stream: Any = None

    def read(self, size: int, /) -> bytes:
        """See `ByteStream`."""
        wanted = min(size, self._file.size - self._at)
        data = attempt(self._file.url, lambda: self._request(wanted)) if wanted else b""
        self._at += len(data)
        return data

    def _request(self, size: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = http.Stream(self._file)
                left = self._at
                while left:
                    left -= len(self._some(min(left, REQUEST_BYTES)))
            return self._some(size)
        except Exception:
            self._close()
            raise

    def _some(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if not data:
            raise EOFError("the connection ended before the file")
        return data

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


class SeekableRemote(io.RawIOBase):
    """A file by range requests, to be read at random: a request a read."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, up to the end of the file."""
        stop = min(self._at + len(buffer), self._file.size)
        if stop <= self._at:
            return 0
        data = fetch(self._file, self._at, stop)
        buffer[: len(data)] = data
        self._at = stop
        return len(data)
