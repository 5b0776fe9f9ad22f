"""http and https through fsspec's session: one request tells all about a file, and a range is a range.

fsspec's own `cat_file` takes a whole file for the range that it asked for when a server ignores the header,
and its `info` sends HEAD, which signed URLs forbid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_tools.errors import DataError
from data_tools.reading.inputs import InputFile, Status

PROTOCOLS = ("http", "https")
URLS = ("http://", "https://")

_CONNECT_SECONDS = 30
_READ_SECONDS = 60


def file_system() -> Any:
    """The http file system of fsspec; it is made once a process.

    Raises:
        ImportError: aiohttp is missing.
    """
    import aiohttp
    import fsspec

    # A file behind "Content-Encoding: gzip" must come as it is stored, and a long one may take hours.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    return fsspec.filesystem("http", client_kwargs={"auto_decompress": False, "timeout": timeout})


def look_up(url: str) -> Status:
    """Size, version, and whether the server sends ranges: by asking for the first byte.

    Raises:
        DataError: the server does not tell the size.
        Exception: whatever the request fails with.
    """
    files = file_system()

    async def request() -> Status:
        session = await files.set_session()
        async with session.get(files.encode_url(url), headers=_range(0, 1)) as answer:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status == 416 and total == "0":  # an empty file has no first byte
                return Status(0, _version(answer), True)
            files._raise_not_found_for_status(answer, url)
            ranges = answer.status == 206
            size = total if ranges else answer.headers.get("Content-Length", "")
            answer.close()  # without its body, which may be the whole file
        if not size.isdecimal():
            raise DataError(f"{url}: its server does not tell its size: download it first")
        return Status(int(size), _version(answer), ranges)

    status: Status = _sync(files.loop, request)
    return status


def fetch(file: InputFile, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file.

    Raises:
        DataError: it is another version of the file.
        Exception: whatever the request fails with.
    """
    files = file_system()

    async def request() -> bytes:
        session = await files.set_session()
        async with session.get(files.encode_url(file.url), headers=_range(start, stop)) as answer:
            files._raise_not_found_for_status(answer, file.url)
            if answer.status != 206:
                raise OSError("the server sent the whole file for a range of it")
            _check_version(file, answer)
            data: bytes = await answer.content.readexactly(stop - start)
            return data

    content: bytes = _sync(files.loop, request)
    return content


class Stream:
    """The body of one answer, from the file's first byte on.

    Raises:
        DataError: it is another version of the file.
        Exception: whatever the request fails with.
    """

    def __init__(self, file: InputFile) -> None:
        files = file_system()
        self._loop = files.loop

        async def request() -> Any:
            session = await files.set_session()
            answer = await session.get(files.encode_url(file.url), headers={"Accept-Encoding": "identity"})
            files._raise_not_found_for_status(answer, file.url)
            _check_version(file, answer)
            return answer

        self._answer = _sync(self._loop, request)

    def read(self, size: int) -> bytes:
        """At least one byte and at most `size`, or b"" at the end."""
        data: bytes = _sync(self._loop, self._answer.content.read, size)
        return data

    def close(self) -> None:
        """Give the connection up."""

        async def close() -> None:
            self._answer.close()

        _sync(self._loop, close)


def _range(start: int, stop: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}


def _version(answer: Any) -> str:
    return str(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


def _check_version(file: InputFile, answer: Any) -> None:
    if _version(answer) != file.version:
        raise DataError(f"{file.url} changed while it was read: run again when it is complete")


def _sync(loop: Any, function: Callable[..., Any], *arguments: object) -> Any:
    """Run a coroutine function in fsspec's loop, which lives in a thread, and wait for it."""
    from fsspec.asyn import sync

    return sync(loop, function, *arguments)
