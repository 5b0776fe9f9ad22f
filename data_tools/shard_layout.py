"""The numbers of shard format 1: dtypes, headers and where a block's payloads lie in its tar."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1
TAR_BLOCK = tarfile.BLOCKSIZE
MANIFEST_NAME, BLOCKS_NAME, TOKENIZER_NAME, META_NAME = (
    "manifest.json",
    "blocks.npy",
    "tokenizer.model",
    "__meta__",
)
SPLITS = ("train", "validation")

BLOCK_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # index into the manifest's shards
        ("key", "<u4"),  # NNNNNN of the members' names
        ("offset", "<u8"),  # bytes from the start of the tar to the tok.bin payload
        ("tokens", "<u4"),
        ("documents", "<u4"),
        ("sentences", "<u4"),  # 0 in a corpus without sentences
        ("xxh3", "<u8"),  # xxh3_64 of the tok.bin payload
        (
            "lengths_xxh3",
            "<u8",
        ),  # xxh3_64 of the doc.bin payload, followed by that of sent.bin if there is one
    ]
)

UintArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def padded(size: int) -> int:
    """Bytes that a payload of `size` bytes takes in a tar."""
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Little endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class Member(NamedTuple):
    """Where a payload lies: bytes from the start of the tar, and its length in bytes."""

    offset: int
    length: int


class BlockLayout(NamedTuple):
    """The payloads of one block; `sent` is None in a corpus without sentences."""

    tok: Member
    doc: Member
    sent: Member | None


def block_layout(row: np.void, sentences: bool, token_bytes: int = 2) -> BlockLayout:
    """Offsets and lengths of a block's payloads, from its `BLOCK_DTYPE` row.

    Args:
        row: one element of `Manifest.blocks`.
        sentences: whether the corpus has sent.bin members.
        token_bytes: bytes of a token: `manifest.token_dtype.itemsize`.
    """
    tok = Member(int(row["offset"]), int(row["tokens"]) * token_bytes)
    doc = Member(tok.offset + padded(tok.length) + TAR_BLOCK, 4 * int(row["documents"]))
    if not sentences:
        return BlockLayout(tok, doc, None)
    sent_length = 4 * (int(row["documents"]) + int(row["sentences"]))
    return BlockLayout(tok, doc, Member(doc.offset + padded(doc.length) + TAR_BLOCK, sent_length))


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the shards of a split have in common; the first part of its manifest."""

    corpus: str
    split: str
    created_by: str
    tokenizer_sha256: str
    vocab_size: int
    eod_id: int
    sentences: bool
    seed: int

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """Type of the stored tokens."""
        return token_dtype(self.vocab_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A file beside a shard; `path` is relative to the split directory."""

    path: str
    bytes: int
    xxh3_128: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo(FileInfo):
    """One shard in the manifest.

    Attributes:
        tokens, documents, blocks: what it holds.
        provenance: where its documents come from (`data_tools.provenance`); None where nobody wrote it down.
    """

    tokens: int
    documents: int
    blocks: int
    provenance: FileInfo | None = None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> ShardInfo:
        """The inverse of `dataclasses.asdict`.

        Raises:
            KeyError, TypeError: the entry is not one.
        """
        provenance = entry.get("provenance")
        return cls(**{**entry, "provenance": FileInfo(**provenance) if provenance else None})
