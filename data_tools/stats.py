"""Numbers of a corpus: sizes of each split, and how long documents and sentences are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.shard_format import Manifest
from data_tools.shard_reader import open_corpus, read_block
from data_tools.tokenizer import corpus_tokenizer, load_tokenizer

_PERCENTILES = (1, 10, 50, 90, 99, 100)


def corpus_stats(corpus: Path) -> dict[str, Any]:
    """Statistics of every split, JSON-able. Reads every block once.

    Raises:
        DataError: the directory is no corpus, or a block is damaged.
    """
    manifests = open_corpus(corpus)
    tokenizer = load_tokenizer(corpus_tokenizer(corpus))
    is_byte = np.fromiter(
        (tokenizer.id_to_piece(i).startswith("<0x") for i in range(tokenizer.vocab_size)), np.bool_
    )
    return {split: _split_stats(manifest, is_byte) for split, manifest in manifests.items()}


def _split_stats(manifest: Manifest, is_byte: npt.NDArray[np.bool_]) -> dict[str, Any]:
    documents: list[npt.NDArray[np.uint32]] = []
    sentences: list[npt.NDArray[np.uint32]] = []
    used = np.zeros(manifest.vocab_size, dtype=np.int64)
    for index in range(len(manifest.blocks)):
        block = read_block(manifest, index)
        documents.append(block.document_lengths)
        if block.sentence_lengths is not None:
            sentences.append(block.sentence_lengths)
        used += np.bincount(block.tokens, minlength=manifest.vocab_size)
    return {
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "sentences": manifest.sentence_count,
        "shards": len(manifest.shards),
        "blocks": len(manifest.blocks),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "vocab_size": manifest.vocab_size,
        "vocab_used": int(np.count_nonzero(used)),
        "byte_token_share": float(used[is_byte].sum() / manifest.tokens),
        "document_tokens": _percentiles(documents),
        "sentence_tokens": _percentiles(sentences),
    }


def _percentiles(lengths: list[npt.NDArray[np.uint32]]) -> dict[str, int] | None:
    if not lengths:
        return None
    values = np.percentile(np.concatenate(lengths), _PERCENTILES, method="lower")
    return {f"p{percent}": int(value) for percent, value in zip(_PERCENTILES, values, strict=True)}


def format_stats(stats: dict[str, Any]) -> str:
    """Statistics as an aligned table, one column per split."""
    rows: list[list[str]] = [["", *stats]]
    for key in next(iter(stats.values())):
        rows.append([key.replace("_", " "), *(_cell(split[key]) for split in stats.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{key}={number:,}" for key, number in value.items())
    return f"{value:.4%}" if isinstance(value, float) else f"{value:,}"
