"""Plain text: a document is a file, a line, or a block of lines between blank lines."""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.documents import BadRecord, Document, ReadCounts
from data_tools.reading import lines as limits
from data_tools.reading.inputs import ReadOptions
from data_tools.reading.lines import WHOLE, ByteStream, Extent, line_batches
from data_tools.reading.records import TOO_LONG, bad_record, decode_text

_Item = Document | BadRecord


def read_text(
    stream: ByteStream, extent: Extent, path: str, options: ReadOptions, counts: ReadCounts
) -> Iterator[_Item]:
    """Yield the documents and bad records that begin in the stream's `extent`, see `line_batches`."""
    if options.text_unit == "line":
        yield from _read_lines(stream, extent, path, counts)
    elif options.text_unit == "block":
        yield from _read_blocks(stream, extent, path, counts)
    else:
        yield from _read_file(stream, path, counts)


class _Span:
    """The lines of one document; of one that is too long only the first."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.lines: list[bytes] = []
        self.length = -1  # of the joined lines: one newline less than there are lines

    def add(self, line: bytes, too_long: bool) -> None:
        self.length += 1 + (limits.MAX_LINE_BYTES + 1 if too_long else len(line))
        if not self.lines or self.length <= limits.MAX_LINE_BYTES:
            self.lines.append(line)

    def record(self, path: str, counts: ReadCounts) -> Iterator[_Item]:
        """The document, or why there is none; nothing if it is without a word."""
        counts.records += 1
        content = b"\n".join(self.lines)
        if self.length > limits.MAX_LINE_BYTES:
            text, reason = "", TOO_LONG
        else:
            text, reason = decode_text(content)
        if reason:
            yield bad_record(counts, path, self.position, reason, content)
        elif not text or text.isspace():
            counts.empty += 1
        else:
            counts.documents += 1
            yield Document(self.position, text)


def _read_file(stream: ByteStream, path: str, counts: ReadCounts) -> Iterator[_Item]:
    parts, length = [], 0
    while length <= limits.MAX_LINE_BYTES and (part := stream.read(limits.READ_BYTES)):
        parts.append(part)
        length += len(part)
    span = _Span(0)
    span.add(b"".join(parts).removeprefix(limits.UTF8_BOM), False)
    yield from span.record(path, counts)


def _read_lines(stream: ByteStream, extent: Extent, path: str, counts: ReadCounts) -> Iterator[_Item]:
    for position, lines, too_long in line_batches(stream, extent):
        for line in lines:
            if too_long or line.strip():
                span = _Span(position)
                span.add(line.removesuffix(b"\r"), too_long)
                yield from span.record(path, counts)
            else:
                counts.records += 1
            position += len(line) + 1


def _read_blocks(stream: ByteStream, extent: Extent, path: str, counts: ReadCounts) -> Iterator[_Item]:
    """A block belongs to the extent in which the last blank line before it begins, the first to the first."""
    start, stop = extent
    ours = start == 0  # whether the block that the next line begins, or goes on with, belongs to this extent
    block: _Span | None = None
    for position, lines, too_long in line_batches(stream, (start, WHOLE[1])):
        for line in lines:
            if too_long or line.strip():
                if not ours and position > stop:
                    return
                if ours:
                    block = block or _Span(position)
                    block.add(line, too_long)
            else:
                if block:
                    yield from block.record(path, counts)
                    block = None
                if position > stop:
                    return
                ours = True
            position += len(line) + 1
    if block:
        yield from block.record(path, counts)
