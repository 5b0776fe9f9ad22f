"""Read a chunk of any format."""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.documents import BadRecord, Document, ReadCounts
from data_tools.errors import DataError
from data_tools.reading.arrays import read_npy
from data_tools.reading.compressed import Unpacked
from data_tools.reading.delimited import read_csv, read_tsv
from data_tools.reading.formats import MAGIC_BYTES, check_magic
from data_tools.reading.inputs import Chunk, ReadOptions
from data_tools.reading.jsonl import read_jsonl
from data_tools.reading.lines import WHOLE, ByteStream
from data_tools.reading.sources import Source, open_source, read_exactly
from data_tools.reading.tables import read_parquet
from data_tools.reading.text import read_text
from data_tools.reading.warc import read_warc

_STREAM_READERS = {
    "jsonl": read_jsonl,
    "text": read_text,
    "csv": read_csv,
    "tsv": read_tsv,
    "warc": read_warc,
}


def read_chunk(chunk: Chunk, options: ReadOptions, counts: ReadCounts) -> Iterator[Document | BadRecord]:
    """Yield the documents and bad records of a chunk, and count them in `counts`.

    Raises:
        DataError: the file cannot be read, is damaged, is not of its format, or has not the keys. What was
            yielded before is no more than a part of the chunk.
    """
    file = chunk.file
    try:
        if file.format in _STREAM_READERS:
            with open_source(file, chunk.start, chunk.stop) as source:
                yield from _read_stream(chunk, source, options, counts)
            return
        if chunk.start == 0:
            with open_source(file, 0, MAGIC_BYTES) as source:
                check_magic(file, source.read(MAGIC_BYTES))
        if file.format == "parquet":
            yield from read_parquet(chunk, options, counts)
        else:
            yield from read_npy(chunk, counts)
    except OSError as error:
        raise DataError(f"cannot read {file.url}: {error.strerror or error}") from error


def _read_stream(
    chunk: Chunk, source: Source, options: ReadOptions, counts: ReadCounts
) -> Iterator[Document | BadRecord]:
    file, stream = chunk.file, _Stream(source)
    if chunk.start == 0:
        check_magic(file, stream.peek(MAGIC_BYTES))
    extent = chunk.unpacked or (WHOLE if file.compression else (chunk.start, chunk.stop))
    unpacked = Unpacked(stream, file.url, file.compression, chunk.start) if file.compression else stream
    yield from _STREAM_READERS[file.format](unpacked, extent, file.url, options, counts)


class _Stream:
    """A stream of which the first bytes can be looked at without a second request."""

    def __init__(self, source: ByteStream) -> None:
        self._source = source
        self._head = b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        self._head = read_exactly(self._source, size)
        return self._head

    def read(self, size: int, /) -> bytes:
        """See `ByteStream`."""
        if not self._head:
            return self._source.read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data
