"""Lines of a byte stream, in batches, and cut at byte ranges so that every line is read exactly once.

A line belongs to the range (start, stop] in which it begins, the file's first line to the first range. So a
reader that starts inside the file drops what comes before the first newline, and reads one line past `stop`:
it need not see the byte before its range, which may lie in another frame of a compressed file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

MAX_LINE_BYTES = 256 << 20
"""A longer line is quarantined unread: it would not fit a worker's memory."""

READ_BYTES = 1 << 20
"""Bytes read at a time, at most MAX_LINE_BYTES: a line inside one read is then never too long."""

EXCERPT_BYTES = 200
UTF8_BOM = b"\xef\xbb\xbf"

Extent = tuple[int, int]
"""A range of bytes (start, stop) of a decompressed file."""

WHOLE: Extent = (0, 1 << 62)
"""A stream of unknown length from its beginning to its end."""


class ByteStream(Protocol):
    """Bytes in order."""

    def read(self, size: int, /) -> bytes:
        """At least one byte and at most `size`, or b"" at the end."""


class Lines(NamedTuple):
    """Consecutive lines without their newlines; the first begins at byte `position`.

    A byte order mark at the beginning of the file is no part of the first line.

    `too_long` marks a batch of one line that is longer than MAX_LINE_BYTES, of which only some is there.
    """

    position: int
    lines: list[bytes]
    too_long: bool = False


def line_batches(stream: ByteStream, extent: Extent) -> Iterator[Lines]:
    """Yield the lines that begin in (start, stop] = `extent`, and the line at 0 if `start` is 0.

    The stream is at byte `start`, and goes on past `stop`, since the last line may.
    """
    start, stop = extent
    at = position = start  # the stream's place; where the line begins of which `parts` are held
    parts: list[bytes] = []
    held = 0
    dropping = start > 0  # inside a line that belongs to another range, or that is too long
    while (inside := at < stop) or not dropping:
        data = stream.read(min(READ_BYTES, stop - at) if inside else READ_BYTES)
        if not data:
            break
        first = data.find(b"\n") + 1
        if first:
            if not dropping:
                yield _line(position, [*parts, data[: first - 1]])
                if not inside:
                    return
            dropping = False
            last = data.rfind(b"\n") + 1
            if last > first:
                yield Lines(at + first, data[first : last - 1].split(b"\n"))
            position, parts, held = at + last, [data[last:]], len(data) - last
        elif not dropping:
            parts.append(data)
            held += len(data)
        at += len(data)
        if held > MAX_LINE_BYTES:
            yield _line(position, parts)
            parts, held, dropping = [], 0, True
    if held:
        yield _line(position, parts)


def _line(position: int, parts: list[bytes]) -> Lines:
    length = sum(map(len, parts))
    if length > MAX_LINE_BYTES:  # joining it would take its length again
        return Lines(position, [b"".join(part[:EXCERPT_BYTES] for part in parts[:EXCERPT_BYTES])], True)
    line = b"".join(parts)
    if position == 0 and line.startswith(UTF8_BOM):
        position, line = len(UTF8_BOM), line.removeprefix(UTF8_BOM)
    return Lines(position, [line])
