"""Decompressed streams of gzip, bzip2, xz and zstd files, in bounded memory.

Files of several members, streams or frames are read to their end. What is cut short or damaged ends in an
error that names the byte: it never looks like the end of the file.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from typing import Protocol

from data_tools.errors import DataError
from data_tools.reading.inputs import Compression
from data_tools.reading.lines import ByteStream
from data_tools.reading.zstd_frames import unpack_zstd

_READ_BYTES = 64 << 10
_PIECE_BYTES = 1 << 20


class Unpacked:
    """The decompressed bytes of a compressed stream.

    Args:
        source: the file, from the beginning of a member, stream or frame on.
        url: its name, for messages.
        compression: not "".
        at: byte of the file at which `source` begins.
    """

    def __init__(self, source: ByteStream, url: str, compression: Compression, at: int = 0) -> None:
        zstd = compression == "zst"
        self._pieces = unpack_zstd(source, url, at) if zstd else _unpack(source, url, compression)
        self._piece = b""
        self._used = 0

    def read(self, size: int, /) -> bytes:
        """See `ByteStream`.

        Raises:
            DataError: the compressed data are damaged or cut short.
        """
        while self._used == len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._piece, self._used = piece, 0
        data = self._piece[self._used : self._used + size]
        self._used += len(data)
        return data


class _Decoder(Protocol):
    """One member or stream, as bz2 and lzma decode it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecoder:
    """A gzip member."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._inner.decompress(data or self._inner.unconsumed_tail, max_length)
        # A full piece may leave more in zlib's window although it took all of its input.
        self.needs_input = not self._inner.unconsumed_tail and len(piece) < max_length
        return piece


def _new_decoder(compression: Compression) -> _Decoder:
    if compression == "gz":
        return _GzipDecoder()
    return bz2.BZ2Decompressor() if compression == "bz2" else lzma.LZMADecompressor(lzma.FORMAT_XZ)


def _unpack(source: ByteStream, url: str, compression: Compression) -> Iterator[bytes]:
    data = source.read(_READ_BYTES)
    at = len(data)  # bytes of the file that were read
    while data:
        decoder, begin = _new_decoder(compression), at - len(data)
        while not decoder.eof:
            try:
                piece = decoder.decompress(data, _PIECE_BYTES)
            except (zlib.error, lzma.LZMAError, OSError, ValueError) as error:
                raise DataError(f"{url} is damaged between bytes {begin} and {at}: {error}") from error
            if piece:
                yield piece
            data = b""
            if decoder.needs_input and not decoder.eof:
                data = source.read(_READ_BYTES)
                if not data:
                    raise DataError(
                        f"{url} is truncated: it ends at byte {at}, inside its {compression} data"
                    )
                at += len(data)
        data = decoder.unused_data.lstrip(b"\0")  # zeros may pad the file, or stand between members
        while not data and (more := source.read(_READ_BYTES)):
            at += len(more)
            data = more.lstrip(b"\0")
