"""Read a corpus block by block, checked; for the tools. Training has its own reader, with threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from data_tools.shard_format import SPLITS, Manifest, Member, UintArray, load_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoded block: T tokens, D documents, S sentences.

    Attributes:
        tokens: [T] ids, every document ending with eod.
        document_lengths: [D] tokens per document, eod included.
        sentence_counts: [D] sentences per document, or None.
        sentence_lengths: [S] tokens per sentence, or None.
    """

    tokens: UintArray
    document_lengths: npt.NDArray[np.uint32]
    sentence_counts: npt.NDArray[np.uint32] | None
    sentence_lengths: npt.NDArray[np.uint32] | None

    def documents(self) -> list[UintArray]:
        """Tokens of each document, eod included."""
        ends = np.cumsum(self.document_lengths, dtype=np.int64)
        starts = ends - self.document_lengths
        return [self.tokens[start:end] for start, end in zip(starts, ends, strict=True)]

    def sentences(self, document: int) -> npt.NDArray[np.uint32] | None:
        """Tokens per sentence of document number `document` of the block, or None."""
        if self.sentence_counts is None or self.sentence_lengths is None:
            return None
        ends = np.cumsum(self.sentence_counts)
        return self.sentence_lengths[ends[document] - self.sentence_counts[document] : ends[document]]


def open_corpus(corpus: Path) -> dict[str, Manifest]:
    """Manifests of the splits that a corpus has, train first.

    Raises:
        DataError: there is no train split, or a split is not whole.
    """
    return {
        split: load_manifest(corpus / split)
        for split in SPLITS
        if split == "train" or (corpus / split).exists()
    }


def read_block(manifest: Manifest, block: int) -> Block:
    """Read block number `block` and check its tokens against the block table.

    Raises:
        DataError: the shard cannot be read, or its content is not what was written.
    """
    row = manifest.blocks[block]
    path = manifest.shard_path(int(row["shard"]))
    place = f"shard {path}, block {int(row['key']):06d}"
    layout = manifest.layout(block)
    raw = _read(path, layout.tok)
    if xxhash.xxh3_64_intdigest(raw) != row["xxh3"]:
        raise DataError(f"{place}: the tokens are damaged (hash differs)")
    tokens: UintArray = np.frombuffer(raw, dtype=manifest.token_dtype)
    raw_lengths = _read(path, layout.doc)
    documents = np.frombuffer(raw_lengths, dtype="<u4")
    raw_sentences = _read(path, layout.sent) if layout.sent else b""
    if xxhash.xxh3_64_intdigest(raw_lengths + raw_sentences) != row["lengths_xxh3"]:
        raise DataError(f"{place}: the lengths of documents or sentences are damaged (hash differs)")
    counts, lengths = None, None
    if layout.sent is not None:
        both = np.frombuffer(raw_sentences, dtype="<u4")
        counts, lengths = both[: len(documents)], both[len(documents) :]
        if counts.sum(dtype=np.int64) != len(lengths):
            raise DataError(f"{place}: sent.bin is damaged (counts do not sum)")
    if documents.sum(dtype=np.int64) != len(tokens):
        raise DataError(f"{place}: doc.bin is damaged (lengths do not sum to the tokens)")
    return Block(tokens=tokens, document_lengths=documents, sentence_counts=counts, sentence_lengths=lengths)


def iterate_documents(manifest: Manifest) -> Iterator[tuple[UintArray, npt.NDArray[np.uint32] | None]]:
    """(tokens with eod, tokens per sentence or None) of every document, in stored order."""
    for index in range(len(manifest.blocks)):
        block = read_block(manifest, index)
        for number, tokens in enumerate(block.documents()):
            yield tokens, block.sentences(number)


def _read(path: Path, member: Member) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            raw = file.read(member.length)
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror}") from error
    if len(raw) != member.length:
        raise DataError(f"shard {path} ends early: {len(raw)} of {member.length} bytes at {member.offset}")
    return raw
