"""Read a shard from end to end without its manifest: what it holds, from the tar itself."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from data_tools.shard_format import BLOCK_DTYPE, FORMAT_VERSION, META_NAME, ShardInfo, padded
from data_tools.shard_layout import TAR_BLOCK
from data_tools.shard_reader import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedShard:
    """What a shard says of itself.

    Attributes:
        meta: its first member.
        sentences: whether its blocks have sent.bin.
        info: its entry in a manifest, without provenance.
        rows: its `BLOCK_DTYPE` rows, as of the first shard.
    """

    meta: dict[str, Any]
    sentences: bool
    info: ShardInfo
    rows: npt.NDArray[np.void]


class ShardScan:
    """Scans a shard: iterate over the blocks, one in memory at a time, then take `result`."""

    result: ScannedShard

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = xxhash.xxh3_128()
        self._offset = 0
        self._rows: list[tuple[int, ...]] = []

    def blocks(self) -> Iterator[Block]:
        """Yield every block.

        Raises:
            DataError: the file is no whole shard; names the byte.
        """
        with self._path.open("rb") as file:
            name, payload = self._member(file)
            meta = self._parse_meta(name, payload)
            sentences = False
            member = self._member(file)
            while member[0]:
                key = len(self._rows)
                offset, tok = self._offset - padded(len(member[1])), self._expect(member, key, "tok")
                doc = self._expect(self._member(file), key, "doc")
                member = self._member(file)
                has_sent = member[0].endswith(".sent.bin")
                sent = self._expect(member, key, "sent") if has_sent else b""
                if key and has_sent != sentences:
                    raise self._damaged("some blocks have sentences and some have none")
                sentences = has_sent
                if has_sent:
                    member = self._member(file)
                block = self._decode(np.dtype(meta["dtype"]), tok, doc, sent if has_sent else None)
                digests = (xxhash.xxh3_64_intdigest(tok), xxhash.xxh3_64_intdigest(doc + sent))
                count = 0 if block.sentence_lengths is None else len(block.sentence_lengths)
                sizes = (len(block.tokens), len(block.document_lengths), count)
                self._rows.append((0, key, offset, *sizes, *digests))
                yield block
            self._end(file)
        self._finish(meta, sentences)

    def _finish(self, meta: dict[str, Any], sentences: bool) -> None:
        rows = np.array(self._rows, dtype=BLOCK_DTYPE)
        info = ShardInfo(
            path=self._path.name,
            bytes=self._offset,
            xxh3_128=self._hash.hexdigest(),
            tokens=int(rows["tokens"].sum(dtype=np.int64)),
            documents=int(rows["documents"].sum(dtype=np.int64)),
            blocks=len(rows),
        )
        self.result = ScannedShard(meta=meta, sentences=sentences, info=info, rows=rows)

    def _read(self, file: IO[bytes], count: int) -> bytes:
        data = file.read(count)
        self._hash.update(data)
        self._offset += len(data)
        if len(data) != count:
            raise self._damaged("it ends early")
        return data

    def _member(self, file: IO[bytes]) -> tuple[str, bytes]:
        """Name and payload of the next member; "" at the end of the tar."""
        header = self._read(file, TAR_BLOCK)
        if header == bytes(TAR_BLOCK):
            return "", b""
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise self._damaged(f"no tar header ({error})") from error
        payload = self._read(file, info.size)
        if any(self._read(file, padded(info.size) - info.size)):
            raise self._damaged("the padding is not empty")
        return info.name, payload

    def _parse_meta(self, name: str, payload: bytes) -> dict[str, Any]:
        try:
            meta: dict[str, Any] = json.loads(payload)
            version = meta["format_version"]
            np.dtype(meta["dtype"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{META_NAME} is not readable") from error
        if name != META_NAME or version != FORMAT_VERSION:
            raise self._damaged(f"it does not begin with {META_NAME} of format {FORMAT_VERSION}")
        return meta

    def _expect(self, member: tuple[str, bytes], key: int, suffix: str) -> bytes:
        name, payload = member
        if name != f"{key:06d}.{suffix}.bin":
            raise self._damaged(f"{name or 'the end'} stands where {key:06d}.{suffix}.bin must be")
        return payload

    def _decode(self, dtype: np.dtype[Any], tok: bytes, doc: bytes, sent: bytes | None) -> Block:
        try:
            tokens = np.frombuffer(tok, dtype=dtype)
            documents = np.frombuffer(doc, dtype="<u4")
            both = None if sent is None else np.frombuffer(sent, dtype="<u4")
        except ValueError as error:
            raise self._damaged("a member has a size that is no multiple of its numbers'") from error
        counts = None if both is None else both[: len(documents)]
        lengths = None if both is None else both[len(documents) :]
        if counts is not None and lengths is not None and counts.sum(dtype=np.int64) != len(lengths):
            raise self._damaged("the sentence counts do not sum")
        if documents.sum(dtype=np.int64) != len(tokens):
            raise self._damaged("the lengths of documents do not sum to the tokens")
        return Block(
            tokens=tokens, document_lengths=documents, sentence_counts=counts, sentence_lengths=lengths
        )

    def _end(self, file: IO[bytes]) -> None:
        rest = file.read(tarfile.RECORDSIZE + 1)
        self._hash.update(rest)
        self._offset += len(rest)
        if len(rest) > tarfile.RECORDSIZE or any(rest) or self._offset % tarfile.RECORDSIZE:
            raise self._damaged("its end is not that of a shard")
        if not self._rows:
            raise self._damaged("it has no block")

    def _damaged(self, reason: str) -> DataError:
        block = f", block {len(self._rows):06d}" if self._rows else ""
        return DataError(
            f"shard {self._path}{block}, before byte {self._offset}: {reason}; restore the shard first"
        )
