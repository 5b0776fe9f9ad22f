"""zstd files frame by frame: where frames begin, and their content in bounded memory (RFC 8878, section 3).

A zstd decoder takes a cut-off file for a complete one, and may turn a few input bytes into gigabytes. So
frames are walked here, block by block: a block gives at most 128 KiB, and the last one is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import zstandard

from data_tools.errors import DataError
from data_tools.reading.lines import ByteStream

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50  # to ...5F
_MOST_HEADER_BYTES = 18
_READ_BYTES = 256 << 10
_WINDOW_BYTES = 1 << 31
"""The largest window of the zstd tool (--long=31): decoding such a file takes as much memory."""


class Frame(NamedTuple):
    """The bytes [start, stop) of a file, and how many they are decompressed."""

    start: int
    stop: int
    content_size: int


class _Header(NamedTuple):
    """A frame's header: its own bytes, and those of a skippable frame's content, else None."""

    size: int
    content_size: int | None
    checksum: bool
    skipped: int | None = None


def _parse_header(head: bytes, url: str, at: int) -> _Header:
    """Parse the bytes of a file from `at` on, up to 18, fewer only at its end."""
    cut_off = f"{url} is truncated: it ends at byte {at + len(head)}, inside a zstd frame header"
    magic = int.from_bytes(head[:4], "little")
    skippable = magic & ~0xF == _SKIPPABLE
    if len(head) < (8 if skippable else 5):
        raise DataError(cut_off)
    if skippable:
        return _Header(8, 0, False, int.from_bytes(head[4:8], "little"))
    if magic != _MAGIC:
        raise DataError(f"{url} is damaged at byte {at}: no zstd frame begins there")
    descriptor = head[4]
    single_segment = bool(descriptor & 0x20)
    id_bytes = (0, 1, 2, 4)[descriptor & 3]
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    begin = 5 + (not single_segment) + id_bytes
    if len(head) < begin + size_bytes:
        raise DataError(cut_off)
    if any(head[begin - id_bytes : begin]):
        raise DataError(f"{url}: the frame at byte {at} needs a zstd dictionary: decompress the file first")
    content_size = None
    if size_bytes:
        content_size = int.from_bytes(head[begin : begin + size_bytes], "little") + 256 * (size_bytes == 2)
    return _Header(begin + size_bytes, content_size, bool(descriptor & 4))


def _block_bytes(header: bytes, url: str, at: int) -> tuple[int, bool]:
    """Bytes of a block after its header, and whether it is the frame's last."""
    value = int.from_bytes(header, "little")
    kind, size = value >> 1 & 3, value >> 3
    if kind == 3:
        raise DataError(f"{url} is damaged at byte {at}: no zstd block begins there")
    return (1 if kind == 1 else size), bool(value & 1)


def find_frames(read_at: Callable[[int, int], bytes], size: int, url: str) -> list[Frame] | None:
    """The frames of a file in order, from their headers alone; None if one does not declare its size.

    Args:
        read_at: the bytes of the file from an offset on, at most so many.
        size: bytes of the file.
        url: its name, for messages.

    Raises:
        DataError: the file is no sequence of whole frames.
    """
    frames, at = [], 0
    while at < size:
        start = at
        header = _parse_header(read_at(at, _MOST_HEADER_BYTES), url, at)
        if header.content_size is None:
            return None
        at += header.size + (header.skipped or 0)
        last = header.skipped is not None
        while not last:
            length, last = _block_bytes(read_at(at, 3), url, at)
            at += 3 + length
            if at > size:
                break
        at += 4 * header.checksum
        if at > size:
            raise DataError(f"{url} is truncated: it ends at byte {size}, inside the frame at byte {start}")
        frames.append(Frame(start, at, header.content_size))
    return frames


class _Input:
    """Exact reads from a stream that gives what it has."""

    def __init__(self, source: ByteStream, url: str, at: int) -> None:
        self._source = source
        self._url = url
        self._data = b""
        self._used = 0
        self.at = at

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        while len(self._data) - self._used < size and (more := self._source.read(_READ_BYTES)):
            self._data, self._used = self._data[self._used :] + more, 0
        return self._data[self._used : self._used + size]

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        data = self.peek(size)
        if len(data) < size:
            end = self.at + len(data)
            raise DataError(f"{self._url} is truncated: it ends at byte {end}, inside a zstd frame")
        self._used += size
        self.at += size
        return data


def unpack_zstd(source: ByteStream, url: str, at: int = 0) -> Iterator[bytes]:
    """Yield the content of frames in pieces, from a frame that begins at byte `at` of the file on.

    Raises:
        DataError: a frame is damaged or cut short.
    """
    file = _Input(source, url, at)
    zstd = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    while head := file.peek(_MOST_HEADER_BYTES):
        begin = file.at
        header = _parse_header(head, url, begin)
        if header.skipped is not None:
            file.take(header.size)
            for left in range(header.skipped, 0, -_READ_BYTES):
                file.take(min(left, _READ_BYTES))
            continue
        try:
            yield from _frame_pieces(file, header, zstd.decompressobj().decompress, url)
        except zstandard.ZstdError as error:
            raise DataError(f"{url} is damaged between bytes {begin} and {file.at}: {error}") from error


def _frame_pieces(
    file: _Input, header: _Header, decompress: Callable[[bytes], bytes], url: str
) -> Iterator[bytes]:
    decompress(file.take(header.size))
    last = False
    while not last:
        begin = file.at
        block = file.take(3)
        length, last = _block_bytes(block, url, begin)
        piece = decompress(block + file.take(length + 4 * (last and header.checksum)))
        if piece:
            yield piece
