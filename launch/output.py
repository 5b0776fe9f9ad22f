"""The output of the ranks: each one's log file, and rank 0 on the terminal as well."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import IO

TERMINAL_CODES = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")


class LogFile:
    """A rank's log, appended line by line by the threads that read its output."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close())
        self._lock = threading.Lock()

    def write_line(self, line: bytes) -> None:
        """Append one line; of a line that was redrawn in place with carriage returns, the last state."""
        last_state = line.rstrip(b"\r\n").rpartition(b"\r")[2]
        with self._lock:
            self._file.write(TERMINAL_CODES.sub(b"", last_state) + b"\n")

    def fileno(self) -> int:
        """The descriptor, for a process that writes its log itself."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Tee(threading.Thread):
    """Copies a pipe to a terminal stream, byte by byte as it comes, and to a log, line by line."""

    def __init__(self, pipe: IO[bytes], terminal: IO[bytes], log: LogFile) -> None:
        super().__init__(daemon=True, name="tee")
        self._pipe, self._terminal, self._log = pipe, terminal, log
        self._terminal_works = True

    def run(self) -> None:
        """Copy until every writer has closed the pipe."""
        pending = b""
        while chunk := os.read(self._pipe.fileno(), 65536):
            self._show(chunk)
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._log.write_line(line)
            # A live line may be redrawn for days without a line end: only its last state is kept.
            pending = pending[pending.rfind(b"\r", 0, len(pending) - 1) + 1 :]
        if pending:
            self._log.write_line(pending)

    def _show(self, chunk: bytes) -> None:
        if not self._terminal_works:
            return
        try:
            self._terminal.write(chunk)
            self._terminal.flush()
        except OSError:
            # The terminal was closed or `| head` has had enough: training goes on, the log has everything.
            self._terminal_works = False


def tail(path: Path, max_lines: int = 20, max_bytes: int = 16384) -> list[str]:
    """The last lines of a log, from the latest attempt only."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - max_bytes))
        lines = file.read().decode("utf-8", "replace").splitlines()
    headers = [i for i, line in enumerate(lines) if line.startswith("=== attempt ")]
    return lines[headers[-1] + 1 if headers else 0 :][-max_lines:]
