"""Where shards lie that are not local files: one read is one attempt, its failure an `AccessError`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Protocol

from data_tools.errors import DataError
from pretrain.data.access.errors import AccessError, NoRanges, NotFound
from pretrain.data.access.fetching import wait_for

SLOWEST_BYTES_PER_SECOND = 100_000
"""A request that trickles slower than this is taken for stalled."""
UNKNOWN_BYTES = 1 << 30
PIECE_BYTES = 8 << 20
"""A whole file is read in pieces of this size, so that a failure repeats little."""
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP status codes that go away by themselves."""
BEYOND_THE_END = 416
"""HTTP status of a range that begins behind the end of a file."""
NEVER = threading.Event()
"""Is never set."""
EXTRAS = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
"""Optional dependencies of Headwater that a scheme needs."""


class Origin(Protocol):
    """A place that has files by path."""

    def name(self, path: str) -> str:
        """A file's URL or command, for messages."""

    def read(self, path: str, start: int, length: int, stop: threading.Event = NEVER) -> bytes:
        """Exactly these bytes of a file.

        Args:
            path: of the file.
            start: first byte.
            length: number of bytes.
            stop: ends the read with an error when it is set.

        Raises:
            AccessError: they cannot be had now; `NoRanges` if parts cannot be had at all.
        """

    def stream(self, path: str, stop: threading.Event = NEVER) -> Iterator[bytes]:
        """A file from its beginning; errors as `read`. An end that comes too early is not noticed."""


class UrlOrigin:
    """Files behind a URL that fsspec knows: s3://, gs://, ..."""

    def __init__(self, template: str, timeout_seconds: float) -> None:
        """Open a file system.

        Args:
            template: the URL of a file, `{shard}` standing for its path.
            timeout_seconds: without a byte, after which a read counts as stalled.

        Raises:
            DataError: the scheme's library is not installed, or it is configured wrongly.
        """
        self._template, self._timeout = template, timeout_seconds
        self._fs = _file_system(template.partition("://")[0], timeout_seconds)

    def name(self, path: str) -> str:
        """See `Origin`."""
        return self._template.replace("{shard}", path)

    def read(self, path: str, start: int, length: int, stop: threading.Event = NEVER) -> bytes:
        """See `Origin`."""
        try:
            payload = self._read(self.name(path), start, length, stop)
        except Exception as error:
            raise explain(error, self._timeout) from error
        if len(payload) != length:
            raise AccessError(
                f"the file ends too early, {len(payload)} of {length} bytes came",
                transient=True,
                damaged=True,
            )
        return payload

    def stream(self, path: str, stop: threading.Event = NEVER) -> Iterator[bytes]:
        """See `Origin`; only for small files, which come whole."""
        try:
            yield self._read(self.name(path), None, None, stop)
        except Exception as error:
            raise explain(error, self._timeout) from error

    def _read(self, url: str, start: int | None, length: int | None, stop: threading.Event) -> bytes:
        end = None if start is None or length is None else start + length
        if not getattr(self._fs, "async_impl", False):
            payload = self._fs.cat_file(url, start=start, end=end)
        else:
            payload = self._wait(self._fs._cat_file(url, start=start, end=end), length, stop)
        return bytes(payload)

    def _wait(self, work: Coroutine[Any, Any, Any], length: int | None, stop: threading.Event) -> Any:
        """Run a coroutine on fsspec's loop, for as long as a healthy read of so many bytes takes."""
        longest = self._timeout + (length or UNKNOWN_BYTES) / SLOWEST_BYTES_PER_SECOND
        return wait_for(asyncio.run_coroutine_threadsafe(work, self._fs.loop), stop, longest)


class HttpOrigin(UrlOrigin):
    """Files behind http:// and https://, with or without range requests.

    fsspec's own `cat_file` loads the whole file where a server ignores the range; this looks at the answer.
    """

    def stream(self, path: str, stop: threading.Event = NEVER) -> Iterator[bytes]:
        """See `Origin`."""
        response = None
        try:
            response = self._wait(self._open(self.name(path)), PIECE_BYTES, stop)
            while piece := self._wait(_next_piece(response.content, PIECE_BYTES), PIECE_BYTES, stop):
                yield piece
        except Exception as error:
            raise explain(error, self._timeout) from error
        finally:
            if response is not None:
                self._fs.loop.call_soon_threadsafe(response.close)

    def _read(self, url: str, start: int | None, length: int | None, stop: threading.Event) -> bytes:
        assert start is not None and length is not None
        return bytes(self._wait(self._get_range(url, start, length), length, stop))

    async def _open(self, url: str, span: str | None = None) -> Any:
        import aiohttp

        session = await self._fs.set_session()
        headers = {"Accept-Encoding": "identity"} | ({"Range": span} if span else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._timeout)
        response = await session.get(self._fs.encode_url(url), headers=headers, timeout=timeout)
        if response.status >= 400:
            response.close()
            if response.status == 404:
                raise NotFound("no such file (HTTP status 404)")
            problem, status = f"HTTP status {response.status} {response.reason}", response.status
            raise AccessError(problem, status in BUSY, damaged=status == BEYOND_THE_END)
        return response

    async def _get_range(self, url: str, start: int, length: int) -> bytes:
        async with await self._open(url, f"bytes={start}-{start + length - 1}") as response:
            if response.status != 206:
                response.close()  # else the whole file comes
                raise NoRanges("the server does not answer range requests; set data.access: cache")
            return bytes(await response.read())


async def _next_piece(content: Any, size: int) -> bytes:
    """Up to `size` bytes of a response, fewer only at its end."""
    parts, left = [], size
    while left and (part := await content.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def explain(error: Exception, timeout_seconds: float) -> AccessError:
    """The same error as an `AccessError`, transient where trying again may help."""
    if isinstance(error, AccessError):
        return error
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return AccessError(f"no data came for {timeout_seconds:g} s", transient=True)
    if isinstance(error, FileNotFoundError):
        return NotFound("no such file")
    if isinstance(error, PermissionError):
        return AccessError(f"access is denied (403): {error}")
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    network = kinds & {"aiohttp.ClientError", "botocore.HTTPClientError"}
    return AccessError(str(error) or type(error).__name__, isinstance(error, OSError) or bool(network))


def _file_system(scheme: str, timeout_seconds: float) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        limits = {"connect_timeout": timeout_seconds, "read_timeout": timeout_seconds}
        options = {"config_kwargs": {**limits, "retries": {"max_attempts": 1}}}
    elif scheme in ("http", "https"):
        options = {"client_kwargs": {"trust_env": True}}
    try:
        file_system = fsspec.filesystem(scheme, **options)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(scheme)
        advice = f"pip install 'headwater[{extra}]'" if extra else "install the library that fsspec names"
        raise DataError(f"cannot read {scheme}:// URLs ({error}); {advice}") from error
    if scheme in ("s3", "s3a"):
        file_system.retries = 1  # ours are bounded and counted; the two together would multiply
    return file_system
