"""The same tokens in the formats of the data loaders that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import webdataset
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from data_tools.shard_format import Header, Manifest, ShardWriter, load_manifest, write_manifest
from pretrain.data.reader import BlockReader

Tokens = npt.NDArray[np.uint16]

EOD = 5
BLOCK_TOKENS = 1 << 19  # 1 MiB
SHARDS = 8


@dataclass(frozen=True, slots=True)
class Sentences:
    """Documents of a real corpus, cut into sentences.

    Attributes:
        tokens: of every sentence, in order; end-of-document tokens left out.
        documents: [D + 1] first sentence of each document, then their number.
    """

    tokens: list[npt.NDArray[np.int64]]
    documents: npt.NDArray[np.int64]


def random_tokens(samples: int, seq_length: int) -> Tokens:
    """[samples, seq_length] ids of a vocabulary of 32,000; how fast they are read does not depend on them."""
    return np.random.default_rng(0).integers(6, 32_000, (samples, seq_length), dtype=np.uint16)


def write_headwater(directory: Path, rows: Tokens, tokenizer_sha256: str, mean_document: int = 1000) -> None:
    """A corpus of which `rows` is the row of all tokens, but for a last token of each document."""
    flat = rows.reshape(-1).copy()
    ends = np.cumsum(np.random.default_rng(1).integers(2, 2 * mean_document, len(flat) // mean_document))
    flat[ends[ends < len(flat)] - 1] = EOD
    header = Header(
        corpus="benchmark", created_by="benchmarks", eod_id=EOD, seed=0, sentences=False, split="train",
        tokenizer_sha256=tokenizer_sha256, vocab_size=32_000,
    )  # fmt: skip
    split = directory / "train"
    split.mkdir(parents=True)
    written = []
    for number, part in enumerate(np.split(flat, SHARDS)):
        with ShardWriter(split / f"train-{number:05d}.tar", header, number) as writer:
            for begin in range(0, len(part), BLOCK_TOKENS):
                block = part[begin : begin + BLOCK_TOKENS]
                cuts = np.flatnonzero(block[:-1] == EOD) + 1
                writer.write_block(block, np.diff(cuts, prepend=0, append=len(block)), None)
        written.append((writer.info, writer.rows))
    write_manifest(split, header, written)


def write_webdataset(directory: Path, rows: Tokens) -> list[str]:
    """Shards with one `.bin` a sample; returns their paths."""
    directory.mkdir()
    paths = []
    for number, part in enumerate(np.split(rows, SHARDS)):
        paths.append(str(directory / f"{number:05d}.tar"))
        with webdataset.TarWriter(paths[-1], mtime=0) as writer:
            for index, row in enumerate(part):
                writer.write({"__key__": f"{number:03d}-{index:06d}", "bin": row.tobytes()})
    return paths


def write_indexed(prefix: Path, sequences: Sequence[npt.NDArray[np.integer]], documents: list[int]) -> str:
    """Megatron's .bin and .idx; returns the prefix.

    Args:
        prefix: path without suffix.
        sequences: tokens of each.
        documents: first sequence of each document, then their number.
    """
    import torch

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for begin, end in zip(documents[:-1], documents[1:], strict=True):
        for sequence in sequences[begin:end]:
            builder.add_item(torch.from_numpy(sequence.astype(np.int64)))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def read_sentences(split: Path) -> Sentences:
    """Every sentence of a corpus that was prepared with `--sentences`."""
    manifest: Manifest = load_manifest(split)
    reader = BlockReader(manifest)
    tokens, counts = [], []
    for block in range(len(manifest.blocks)):
        per_document, lengths = reader.sentences(block)
        start = reader.token_starts[block : block + 1]
        flat = reader.read(start, int(manifest.blocks["tokens"][block]))
        document = np.repeat(np.arange(len(per_document)), per_document)
        begins = np.cumsum(lengths, dtype=np.int64) - lengths + document
        for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
            tokens.append(flat[begin : begin + length].astype(np.int64))
        counts.append(per_document)
    reader.close()
    return Sentences(tokens, np.cumsum(np.concatenate([[0], *counts]).astype(np.int64)))
