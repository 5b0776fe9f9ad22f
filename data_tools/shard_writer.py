"""Writes one shard: a reproducible USTAR tar of token blocks (`shard_format` describes it).

Why not `webdataset.TarWriter`: release 1.0.2 never passes the USTAR format on, and its float mtime
gives every member a PAX header: larger, and other bytes on every run.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.shard_layout import (
    BLOCK_DTYPE,
    FORMAT_VERSION,
    META_NAME,
    TAR_BLOCK,
    Header,
    ShardInfo,
    padded,
)


class ShardWriter:
    """Writes one shard. Use as a context manager; `info` and `rows` hold after the exit.

    Attributes:
        info: the shard's entry in the manifest.
        rows: one `BLOCK_DTYPE` row per block.
    """

    info: ShardInfo
    rows: npt.NDArray[np.void]

    def __init__(self, path: Path, header: Header, shard_index: int) -> None:
        self._path, self._header, self._shard_index = path, header, shard_index
        self._hash = xxhash.xxh3_128()
        self._offset = 0
        self._rows: list[tuple[int, ...]] = []
        self._file: IO[bytes] = path.open("wb")

    def __enter__(self) -> ShardWriter:
        self._member(META_NAME, meta_payload(self._header))
        return self

    def write_block(
        self,
        tokens: npt.ArrayLike,
        document_lengths: npt.ArrayLike,
        sentences: tuple[npt.ArrayLike, npt.ArrayLike] | None,
    ) -> None:
        """Append one block.

        Args:
            tokens: [T] ids; every document ends with eod_id.
            document_lengths: [D] tokens per document; sums to T.
            sentences: ([D] sentences per document, [sum of these] tokens per sentence), or None.
        """
        key = len(self._rows)
        token_bytes = np.asarray(tokens, dtype=self._header.token_dtype).tobytes()
        lengths = np.asarray(document_lengths, dtype="<u4")
        length_bytes = lengths.tobytes()
        offset = self._member(f"{key:06d}.tok.bin", token_bytes)
        self._member(f"{key:06d}.doc.bin", length_bytes)
        sentence_count = 0
        if sentences is not None:
            counts, sentence_lengths = (np.asarray(part, dtype="<u4") for part in sentences)
            sentence_count = len(sentence_lengths)
            sentence_bytes = counts.tobytes() + sentence_lengths.tobytes()
            self._member(f"{key:06d}.sent.bin", sentence_bytes)
            length_bytes += sentence_bytes
        count = len(token_bytes) // self._header.token_dtype.itemsize
        digests = (xxhash.xxh3_64_intdigest(token_bytes), xxhash.xxh3_64_intdigest(length_bytes))
        self._rows.append((self._shard_index, key, offset, count, len(lengths), sentence_count, *digests))

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            if exc_type is None:
                self._finish()
        finally:
            self._file.close()

    def _finish(self) -> None:
        end = self._offset + 2 * TAR_BLOCK
        self._write(bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - self._offset))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows = np.array(self._rows, dtype=BLOCK_DTYPE)
        self.info = ShardInfo(
            path=self._path.name,
            bytes=self._offset,
            xxh3_128=self._hash.hexdigest(),
            tokens=int(self.rows["tokens"].sum(dtype=np.int64)),
            documents=int(self.rows["documents"].sum(dtype=np.int64)),
            blocks=len(self.rows),
        )

    def _member(self, name: str, payload: bytes) -> int:
        """Append a member; returns the offset of its payload."""
        self._write(member_header(name, len(payload)))
        offset = self._offset
        self._write(payload)
        self._write(bytes(padded(len(payload)) - len(payload)))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)


def meta_payload(header: Header) -> bytes:
    """Content of a shard's first member."""
    meta = {
        "format_version": FORMAT_VERSION,
        "tokenizer_sha256": header.tokenizer_sha256,
        "vocab_size": header.vocab_size,
        "dtype": header.token_dtype.name,
        "eod_id": header.eod_id,
        "split": header.split,
    }
    return json.dumps(meta).encode()


def member_header(name: str, size: int) -> bytes:
    """The tar header of a member: mtime 0, uid 0, gid 0, no owner names, so nothing varies."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)
