"""Shard format 1: what a corpus on disk looks like, and the code that writes and opens it.

A corpus is a directory with `tokenizer.model` and one directory per split; a split is

    manifest.json       header, shard table (bytes, hash, counts)
    blocks.npy          one `BLOCK_DTYPE` row per block
    train-00000.parquet where each document of the shard comes from (`data_tools.provenance`)
    train-00000.tar     USTAR, readable by stock `webdataset`; one sample = one block of ~1 MiB tokens

Members of a shard, in this order, each payload padded to 512 bytes:

    __meta__            JSON about the tokens, so that a lone shard explains itself
    000000.tok.bin      tokens, little endian uint16 or uint32; every document ends with eod_id
    000000.doc.bin      uint32 per document: its length in tokens, eod included
    000000.sent.bin     only with sentences: uint32 per document (its number of sentences), then
                        uint32 per sentence (its length in tokens; eod belongs to no sentence)

Keys count from 0 in each shard. A document is never split over blocks. Names, owners and times are
fixed, so the same documents give the same bytes.

This module is the whole of it for readers; `shard_writer` writes, `shard_layout` names the numbers.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from data_tools.shard_layout import (
    BLOCK_DTYPE,
    BLOCKS_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    META_NAME,
    SPLITS,
    TOKENIZER_NAME,
    BlockLayout,
    FileInfo,
    Header,
    Member,
    ShardInfo,
    UintArray,
    block_layout,
    padded,
    token_dtype,
)
from data_tools.shard_writer import ShardWriter

__all__ = [
    "BLOCKS_NAME",
    "BLOCK_DTYPE",
    "FORMAT_VERSION",
    "FileInfo",
    "MANIFEST_NAME",
    "META_NAME",
    "SPLITS",
    "TOKENIZER_NAME",
    "BlockLayout",
    "Header",
    "Manifest",
    "Member",
    "ShardInfo",
    "ShardWriter",
    "UintArray",
    "block_layout",
    "load_manifest",
    "padded",
    "parse_manifest",
    "token_dtype",
    "write_manifest",
]

_SUMS = {"tokens": "tokens", "documents": "documents", "sentence_count": "sentences"}
"""Totals in the manifest, and the block column that each sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Header):
    """A split that was opened: its header, its shards and its block table.

    Attributes:
        directory: the split directory; shard paths are relative to it.
        origin: where the split came from, for messages: the directory or a URL.
        hash: xxh3_128 of manifest.json, in hex; names this exact split.
        shards: the shard table; `BLOCK_DTYPE["shard"]` indexes it.
        tokens, documents, sentence_count: totals over all shards, eod tokens included.
        blocks: [number of blocks] `BLOCK_DTYPE` rows, ordered by shard and key; read-only.
    """

    directory: Path
    origin: str
    hash: str
    shards: tuple[ShardInfo, ...]
    tokens: int
    documents: int
    sentence_count: int
    blocks: npt.NDArray[np.void]

    def header(self) -> Header:
        """What the shards have in common, without the rest."""
        return Header(**{field.name: getattr(self, field.name) for field in fields(Header)})

    def shard_path(self, index: int) -> Path:
        """Path of shard number `index`."""
        return self.directory / self.shards[index].path

    def layout(self, block: int) -> BlockLayout:
        """Where the payloads of block number `block` lie in its shard."""
        return block_layout(self.blocks[block], self.sentences, self.token_dtype.itemsize)

    def sizes(self) -> dict[str, int]:
        """How large the split is, for records and statistics."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "sentences": self.sentence_count,
            "shards": len(self.shards),
            "blocks": len(self.blocks),
            "bytes": sum(shard.bytes for shard in self.shards),
        }

    def totals(self) -> dict[str, Any]:
        """What a corpus's record says of the split: its sizes, and the hash of its manifest."""
        return {**self.sizes(), "manifest_xxh3": self.hash}


def write_manifest(
    directory: Path, header: Header, shards: Sequence[tuple[ShardInfo, npt.NDArray[np.void]]]
) -> None:
    """Write blocks.npy and then manifest.json; the directory's shards are complete already.

    Args:
        directory: the split directory.
        header: what its shards have in common.
        shards: `info` and `rows` of each `ShardWriter`, in order of `shard_index`.
    """
    rows = np.concatenate([rows for _, rows in shards])
    table = io.BytesIO()
    np.save(table, rows)
    _write(directory / BLOCKS_NAME, table.getvalue())
    manifest = {
        "format_version": FORMAT_VERSION,
        **asdict(header),
        "dtype": header.token_dtype.name,
        "shards": [asdict(info) for info, _ in shards],
        **{total: int(rows[column].sum(dtype=np.int64)) for total, column in _SUMS.items()},
        "blocks": len(rows),
        "blocks_xxh3": _hex_digest(table.getvalue()),
    }
    _write(directory / MANIFEST_NAME, (json.dumps(manifest, indent=1) + "\n").encode())


def load_manifest(split_dir: Path) -> Manifest:
    """Open a split and check that it is whole: tables agree, every shard is there with its size.

    The shards' content is not read; `data_tools.verify` does that.

    Raises:
        DataError: something is missing or inconsistent; the message names it.
    """
    manifest = load_tables(split_dir)
    _check_shards(manifest)
    return manifest


def load_tables(split_dir: Path) -> Manifest:
    """Open a split by its two tables, whether or not its shards are there.

    Raises:
        DataError: a table is missing, damaged, or does not go with the other.
    """
    try:
        raw = (split_dir / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise DataError(
            f"no shards at {split_dir}: cannot read {MANIFEST_NAME} ({error.strerror}); "
            "`headwater data prepare` makes a corpus"
        ) from error
    table = split_dir / BLOCKS_NAME
    try:
        blocks = table.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the block table {table}: {error.strerror}") from error
    return parse_manifest(raw, blocks, str(split_dir), split_dir)


def parse_manifest(raw: bytes, blocks: bytes, origin: str, directory: Path) -> Manifest:
    """Open a split from the content of its two tables, wherever they came from; no shard is looked at.

    Args:
        raw: the content of manifest.json.
        blocks: the content of blocks.npy.
        origin: where the split lies, for messages.
        directory: where its shards lie, if they are local files.

    Raises:
        DataError: something is damaged or inconsistent; the message names it.
    """
    path = f"{origin.rstrip('/')}/{MANIFEST_NAME}"
    try:
        data: dict[str, Any] = json.loads(raw)
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(f"{path}: format_version is {version}, this release reads {FORMAT_VERSION}")
        manifest = Manifest(
            **{field.name: data[field.name] for field in fields(Header)},
            **{total: data[total] for total in _SUMS},
            directory=directory,
            origin=origin,
            hash=_hex_digest(raw),
            shards=tuple(ShardInfo.from_json(shard) for shard in data["shards"]),
            blocks=_parse_blocks(blocks, data["blocks"], data["blocks_xxh3"], origin),
        )
        declared = data["dtype"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a manifest, or damaged ({type(error).__name__}: {error})") from error
    if declared != manifest.token_dtype.name:
        raise DataError(f"{path}: dtype {declared} does not go with vocab_size {manifest.vocab_size}")
    _check_totals(manifest)
    return manifest


def _parse_blocks(raw: bytes, expected: int, digest: str, origin: str) -> npt.NDArray[np.void]:
    path = f"{origin.rstrip('/')}/{BLOCKS_NAME}"
    if _hex_digest(raw) != digest:
        raise DataError(f"the block table {path} does not belong to its {MANIFEST_NAME}; prepare again")
    rows: npt.NDArray[np.void] = np.load(io.BytesIO(raw), allow_pickle=False)
    if rows.dtype != BLOCK_DTYPE:
        raise DataError(f"the block table {path} was written by another release: prepare the corpus again")
    if len(rows) != expected:
        raise DataError(f"the block table {path} has {len(rows)} rows, its {MANIFEST_NAME} says {expected}")
    rows.flags.writeable = False
    return rows


def _check_shards(manifest: Manifest) -> None:
    for index, shard in enumerate(manifest.shards):
        path = manifest.shard_path(index)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"no shard {path} ({error.strerror}): restore it or prepare again") from error
        if size != shard.bytes:
            raise DataError(
                f"shard {path} has {size} bytes, its manifest says {shard.bytes}: restore it or prepare again"
            )


def _check_totals(manifest: Manifest) -> None:
    path = f"{manifest.origin.rstrip('/')}/{MANIFEST_NAME}"
    rows = manifest.blocks
    if len(rows) == 0 or not manifest.shards:
        raise DataError(f"{path}: the split has no blocks")
    for total, column in _SUMS.items():
        found = int(rows[column].sum(dtype=np.int64))
        if found != getattr(manifest, total):
            raise DataError(f"{path}: {total} is {getattr(manifest, total)}, the blocks hold {found}")
    per_shard = np.bincount(rows["shard"].astype(np.int64), minlength=len(manifest.shards))
    for index, shard in enumerate(manifest.shards):
        if len(per_shard) > len(manifest.shards) or per_shard[index] != shard.blocks:
            raise DataError(f"{path}: {shard.path} has {shard.blocks} blocks, the block table disagrees")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _hex_digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)
