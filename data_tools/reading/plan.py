"""Cut input files into chunks, tell whether they changed, and hash what was read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import xxhash

from data_tools.errors import DataError
from data_tools.reading.formats import MAGIC_BYTES, check_magic
from data_tools.reading.inputs import CHUNK_BYTES, Chunk, InputFile, ReadOptions
from data_tools.reading.lines import UTF8_BOM
from data_tools.reading.sources import look_up, open_source
from data_tools.reading.zstd_frames import find_frames

_READ_BYTES = 1 << 20


def plan_chunks(
    files: Sequence[InputFile], options: ReadOptions, chunk_bytes: int = CHUNK_BYTES
) -> list[Chunk]:
    """Cut files into chunks of about `chunk_bytes`, in order.

    Lines, blocks, row groups and arrays are cut by bytes, without opening the file; local zstd files at
    frames, if all of them declare their size. csv, WARC and other compressed files are one chunk, as is what
    comes from a web server without range requests. Empty files that may be empty have no chunk.

    Raises:
        DataError: a zstd file is damaged.
    """
    chunks: list[Chunk] = []
    for index, file in enumerate(files):
        if file.size <= chunk_bytes:
            if file.size or file.compression or file.format in ("parquet", "npy"):
                chunks.append(Chunk(file, index, 0, file.size))
        elif file.compression == "zst" and not file.remote and _by_lines(file, options):
            chunks += _cut_frames(file, index, chunk_bytes)
        elif file.ranges and not file.compression and _by_bytes(file, options):
            for start in range(0, file.size, chunk_bytes):
                chunks.append(Chunk(file, index, start, min(start + chunk_bytes, file.size)))
        else:
            chunks.append(Chunk(file, index, 0, file.size))
    return chunks


def _by_lines(file: InputFile, options: ReadOptions) -> bool:
    return file.format == "jsonl" or (file.format == "text" and options.text_unit != "file")


def _by_bytes(file: InputFile, options: ReadOptions) -> bool:
    return file.format in ("parquet", "npy") or _by_lines(file, options)


def _cut_frames(file: InputFile, index: int, chunk_bytes: int) -> Iterator[Chunk]:
    """Chunks of whole frames, of at least `chunk_bytes` each but the last."""
    descriptor = os.open(file.url, os.O_RDONLY)
    try:
        check_magic(file, os.pread(descriptor, MAGIC_BYTES, 0))
        frames = find_frames(lambda at, size: os.pread(descriptor, size, at), file.size, file.url)
    finally:
        os.close(descriptor)
    if frames is None:
        yield Chunk(file, index, 0, file.size)
        return
    start = begin = end = 0  # begin and end: in the decompressed file
    for frame in frames:
        end += frame.content_size
        # Two chunks must not both begin at 0 of the decompressed file: the line there would be read twice.
        # Nor may one end inside a byte order mark, behind which the first line begins.
        enough = frame.stop - start >= chunk_bytes and end > begin and end >= len(UTF8_BOM)
        if enough or frame.stop == file.size:
            yield Chunk(file, index, start, frame.stop, (begin, end))
            start, begin = frame.stop, end


def chunk_digest(chunk: Chunk) -> bytes:
    """xxh3_128 of the chunk's bytes as they are stored.

    A file behind a URL that has a version is not fetched again: the hash is of version, size and range.

    Raises:
        DataError: the file cannot be read.
    """
    digest = xxhash.xxh3_128()
    if chunk.file.remote and chunk.file.version:
        digest.update(f"{chunk.file.version} {chunk.file.size} {chunk.start} {chunk.stop}".encode())
        return digest.digest()
    left = chunk.stop - chunk.start
    try:
        with open_source(chunk.file, chunk.start, chunk.stop) as source:
            while left > 0 and (part := source.read(min(left, _READ_BYTES))):
                digest.update(part)
                left -= len(part)
    except OSError as error:
        raise DataError(f"cannot read {chunk.file.url}: {error.strerror or error}") from error
    return digest.digest()


def check_unchanged(file: InputFile) -> None:
    """Check that a file is still what it was when it was found.

    Raises:
        DataError: size or version differ, or it is gone.
    """
    now = look_up(file.url)
    if (now.size, now.version) != (file.size, file.version):
        raise DataError(f"{file.url} changed while it was read: run again when it is complete")
