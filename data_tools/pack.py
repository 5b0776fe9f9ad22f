"""Second half of `prepare`: the documents of a bucket into the token blocks of a shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.scatter import read_bucket
from data_tools.sentences import split_sentences
from data_tools.shard_format import Header, ShardInfo, ShardWriter
from data_tools.tokenizer import Tokenizer

_BATCH_CHARACTERS = 1 << 20
"""Text that is tokenised at once; has no influence on the result."""

Ids = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int64]
PackedShard = tuple[ShardInfo, npt.NDArray[np.void]]
"""A shard's manifest entry and its block rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackTask:
    """One bucket to turn into the shard `path`; `pieces` as for `read_bucket`."""

    pieces: tuple[tuple[Path, int, int], ...]
    path: Path
    shard_index: int
    header: Header
    tokenizer: Path
    block_bytes: int


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A document's tokens with its eod, and the length in tokens of each of its sentences."""

    tokens: Ids
    sentence_lengths: Lengths


def pack(task: PackTask) -> PackedShard:
    """Write one shard; returns its manifest entry and its block rows."""
    tokenizer = Tokenizer.load(task.tokenizer)
    block: list[EncodedDocument] = []
    tokens = 0
    with ShardWriter(task.path, task.header, task.shard_index) as writer:
        for batch in _batches(read_bucket(task.pieces)):
            for document in encode_documents(tokenizer, batch, task.header.sentences):
                block.append(document)
                tokens += len(document.tokens)
                if tokens * task.header.token_dtype.itemsize >= task.block_bytes:
                    _write(writer, block, task.header.sentences)
                    block, tokens = [], 0
        if block:
            _write(writer, block, task.header.sentences)
    return writer.info, writer.rows


def encode_documents(tokenizer: Tokenizer, texts: list[str], sentences: bool) -> Iterator[EncodedDocument]:
    """Tokens of each text.

    With `sentences`, each sentence is tokenised by itself and a document is their concatenation, so
    that sentence lengths in tokens are exact.
    """
    parts = [split_sentences(text) if sentences else [text] for text in texts]
    encoded = iter(tokenizer.encode_batch([part for document in parts for part in document]))
    eod = np.array([tokenizer.eod_id], dtype=np.int32)
    for document in parts:
        arrays = [next(encoded) for _ in document]
        lengths = np.fromiter((len(array) for array in arrays), np.int64, len(arrays))
        yield EncodedDocument(np.concatenate([*arrays, eod]), lengths)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write(writer: ShardWriter, block: list[EncodedDocument], sentences: bool) -> None:
    counts = [len(document.sentence_lengths) for document in block]
    lengths = np.concatenate([document.sentence_lengths for document in block])
    writer.write_block(
        np.concatenate([document.tokens for document in block]),
        [len(document.tokens) for document in block],
        (counts, lengths) if sentences else None,
    )
