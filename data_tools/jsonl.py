"""Read documents from JSON-lines files, in byte ranges, so that one large file feeds many workers.

A bad line never ends the reading: it is returned as a `BadLine` with its place and reason, for the
quarantine. `Intake` decides whether there are too many of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import xxhash

from data_tools.errors import DataError

CHUNK_BYTES = 64 << 20
"""Bytes of input that one worker reads at a time."""

MAX_LINE_BYTES = 256 << 20
"""A longer line is quarantined unread: it would not fit a worker's memory."""

_EXCERPT_BYTES = 200
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Chunk:
    """The lines that begin in the bytes [start, stop) of an input file."""

    file_index: int
    path: Path
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Document:
    """A document, and the byte at which its line begins in the input file."""

    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that holds no document; `line` counts from 1 in the file, or in the chunk while reading."""

    path: str
    line: int
    offset: int
    reason: str
    excerpt: str


@dataclass(slots=True)
class LineCounts:
    """What a reading met: lines, blank ones included; `empty` are documents without a word."""

    lines: int = 0
    documents: int = 0
    empty: int = 0
    bad: int = 0

    def add(self, other: LineCounts) -> None:
        """Add another reading's counts."""
        self.lines += other.lines
        self.documents += other.documents
        self.empty += other.empty
        self.bad += other.bad


def find_inputs(paths: Sequence[Path]) -> list[Path]:
    """Expand directories to their *.jsonl files, sorted by name.

    Raises:
        DataError: a path is missing, named twice, compressed, or a directory without *.jsonl files.
    """
    found: list[Path] = []
    for path in paths:
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"no *.jsonl files under {path}")
        found += files
    for path in found:
        if not path.is_file():
            raise DataError(f"no input file {path}")
        if path.suffix in {".gz", ".zst", ".bz2", ".xz"}:
            raise DataError(f"{path} is compressed: decompress it first")
    if len({path.resolve() for path in found}) < len(found):
        raise DataError("an input file is named twice")
    return found


def plan_chunks(paths: Sequence[Path], chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
    """Cut files into chunks of about `chunk_bytes`, in order."""
    chunks = []
    for index, path in enumerate(paths):
        size = path.stat().st_size
        for start in range(0, size, chunk_bytes):
            chunks.append(Chunk(index, path, start, min(start + chunk_bytes, size)))
    return chunks


def read_chunk(chunk: Chunk, json_key: str, counts: LineCounts) -> Iterator[Document | BadLine]:
    """Yield the documents and bad lines of a chunk, and count them in `counts`.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with chunk.path.open("rb") as file:
            yield from _read_lines(file, chunk, json_key, counts)
    except OSError as error:
        raise DataError(f"cannot read {chunk.path}: {error.strerror or error}") from error


def _read_lines(
    file: IO[bytes], chunk: Chunk, json_key: str, counts: LineCounts
) -> Iterator[Document | BadLine]:
    if chunk.start > 0:  # the line that reaches into this chunk belongs to the one before
        file.seek(chunk.start - 1)
        _skip_line(file)
    while (offset := file.tell()) < chunk.stop:
        line = file.readline(MAX_LINE_BYTES + 1)
        counts.lines += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            _skip_line(file)
            text, reason = None, f"line is longer than {MAX_LINE_BYTES >> 20} MiB"
        elif not line.strip():
            continue
        else:
            text, reason = parse_line(line.removeprefix(_UTF8_BOM) if offset == 0 else line, json_key)
        if text is None:
            counts.bad += 1
            excerpt = line[:_EXCERPT_BYTES].decode("utf-8", "replace").rstrip("\n")
            yield BadLine(str(chunk.path), counts.lines, offset, reason, excerpt)
        elif not text.strip():
            counts.empty += 1
        else:
            counts.documents += 1
            yield Document(offset, text)


def _skip_line(file: IO[bytes]) -> None:
    while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def parse_line(line: bytes, json_key: str) -> tuple[str, str] | tuple[None, str]:
    """The text of a line and "", or None and the reason why it has none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start} of the line"
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"
    if not isinstance(record, dict):
        return None, f"not a JSON object but {type(record).__name__}"
    if json_key not in record:
        keys = ", ".join(sorted(record)[:8]) or "none"
        return None, f'no key "{json_key}" (keys: {keys})'
    text = record[json_key]
    if not isinstance(text, str):
        return None, f'key "{json_key}" is not a string but {type(text).__name__}'
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return None, f"lone surrogate at character {error.start} of the text"
    return text, ""


class Intake:
    """Adds up what the chunks of a corpus held, in their order, and numbers bad lines by file.

    Attributes:
        counts: totals so far.
        bad_lines: every bad line so far, `line` counted from 1 in its file.
    """

    def __init__(self) -> None:
        self.counts = LineCounts()
        self.bad_lines: list[BadLine] = []
        self._file_index = -1
        self._file_lines = 0

    def add(self, chunk: Chunk, counts: LineCounts, bad_lines: Sequence[BadLine]) -> None:
        """Add the next chunk."""
        if chunk.file_index != self._file_index:
            self._file_index, self._file_lines = chunk.file_index, 0
        self.bad_lines += (replace(bad, line=bad.line + self._file_lines) for bad in bad_lines)
        self._file_lines += counts.lines
        self.counts.add(counts)

    def check(self, max_bad_fraction: float) -> None:
        """Refuse a corpus of which too many lines are bad.

        Raises:
            DataError: names the first bad line, its reason, and the option to change.
        """
        counts = self.counts
        if counts.bad > max_bad_fraction * counts.lines:
            first = self.bad_lines[0]
            raise DataError(
                f"{counts.bad} of {counts.lines} lines hold no document, more than --max-bad-fraction "
                f"{max_bad_fraction:g}; the first is {first.path}:{first.line}: {first.reason}"
            )


def chunk_digest(chunk: Chunk) -> bytes:
    """xxh3_128 of the chunk's bytes [start, stop)."""
    digest = xxhash.xxh3_128()
    with chunk.path.open("rb") as file:
        file.seek(chunk.start)
        left = chunk.stop - chunk.start
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    return digest.digest()
