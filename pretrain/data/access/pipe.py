"""Shards that come out of commands and other sources that cannot seek, opened by webdataset's `gopen`."""

from __future__ import annotations

import os
import select
import shlex
import threading
import time
from collections.abc import Iterator
from typing import Any

from data_tools.errors import DataError
from pretrain.data.access.errors import AccessError, NoRanges
from pretrain.data.access.fetching import STOP_SECONDS, check_running
from pretrain.data.access.origin import NEVER

READ_BYTES = 1 << 20


class PipeOrigin:
    """Files that `webdataset.gopen` opens: `pipe:COMMAND`, and schemes that fsspec does not know."""

    def __init__(self, template: str, timeout_seconds: float) -> None:
        """Set up; nothing is started yet.

        Args:
            template: for `gopen`, `{shard}` standing for a shard's path; quoted where a shell reads it.
            timeout_seconds: without a byte, after which a command counts as stalled.

        Raises:
            DataError: webdataset is not installed.
        """
        try:
            from webdataset import gopen
        except ImportError as error:
            raise DataError(
                f"{template!r} needs webdataset to open it; pip install 'headwater[pipe]'"
            ) from error
        self._gopen, self._template, self._timeout = gopen, template, timeout_seconds

    def name(self, path: str) -> str:
        """See `Origin`."""
        quoted = shlex.quote(path) if self._template.startswith("pipe:") else path
        return self._template.replace("{shard}", quoted)

    def read(self, path: str, start: int, length: int, stop: threading.Event = NEVER) -> bytes:
        """See `Origin`: never."""
        raise NoRanges("a pipe gives whole shards only; set data.access: cache")

    def stream(self, path: str, stop: threading.Event = NEVER) -> Iterator[bytes]:
        """See `Origin`. What the command says on stderr goes to ours; a failed command is an error."""
        try:
            stream = self._gopen(self.name(path))
        except (OSError, ValueError) as error:
            raise AccessError(f"cannot be opened: {error}", transient=True) from error
        finished = False
        try:
            while piece := self._next(stream, stop):
                yield piece
            finished = True
        finally:
            _end(stream, finished)

    def _next(self, stream: Any, stop: threading.Event) -> bytes:
        source = getattr(stream, "stream", stream)  # gopen wraps the output of a command
        give_up = time.monotonic() + self._timeout
        while not select.select([source], [], [], min(STOP_SECONDS, self._timeout))[0]:
            check_running(stop)
            if time.monotonic() > give_up:
                raise AccessError(f"no data came for {self._timeout:g} s", transient=True)
        try:
            return os.read(source.fileno(), READ_BYTES)
        except OSError as error:
            raise AccessError(error.strerror or str(error), transient=True) from error


def _end(stream: Any, finished: bool) -> None:
    """Close a stream; a command that is not finished is ended."""
    process = getattr(stream, "proc", None)
    if process is not None and not finished:
        process.kill()
        stream.ignore_errors = True
    try:
        stream.close()
    except OSError as error:
        status = "" if process is None else f" with status {process.returncode}"
        raise AccessError(f"the command failed{status}", transient=True) from error
