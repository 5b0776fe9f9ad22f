"""Numbers of a corpus: sizes of each split, how long documents and sentences are, where they come from.

Reads every block once, one at a time. Memory: see `data_tools.lengths`, and a counter per source, of which
those beyond the first 10,000 are counted together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.errors import DataError
from data_tools.lengths import Lengths
from data_tools.progress import Progress
from data_tools.shard_format import Manifest
from data_tools.shard_reader import open_corpus, read_block
from data_tools.tokenizer import corpus_tokenizer, load_tokenizer

OTHERS = "(others)"
_MOST_NAMES = 10_000
_SHOWN_NAMES = 20
_BAR = 40  # characters

Shares = dict[str, dict[str, int]]
"""Documents and tokens of each source or language."""


def corpus_stats(corpus: Path) -> dict[str, Any]:
    """Statistics of every split, JSON-able.

    Raises:
        DataError: the directory is no corpus, or a block is damaged.
    """
    manifests = open_corpus(corpus)
    is_byte = load_tokenizer(corpus_tokenizer(corpus)).is_byte
    return {split: _split_stats(manifest, is_byte) for split, manifest in manifests.items()}


def _split_stats(manifest: Manifest, is_byte: npt.NDArray[np.bool_]) -> dict[str, Any]:
    documents, sentences = Lengths(), Lengths()
    used = np.zeros(manifest.vocab_size, dtype=np.int64)
    with Progress(f"read {manifest.split}", manifest.tokens * manifest.token_dtype.itemsize) as progress:
        for index in range(len(manifest.blocks)):
            block = read_block(manifest, index)
            documents.add(block.document_lengths)
            if block.sentence_lengths is not None:
                sentences.add(block.sentence_lengths)
            used += np.bincount(block.tokens, minlength=manifest.vocab_size)
            progress.add(block.tokens.nbytes, len(block.document_lengths))
    sources, languages = _provenance(manifest)
    return {
        **manifest.sizes(),
        "vocab_size": manifest.vocab_size,
        "vocab_used": int(np.count_nonzero(used)),
        "byte_token_share": float(used[is_byte].sum() / manifest.tokens),
        "document_tokens": documents.summary(),
        "sentence_tokens": sentences.summary(),
        "sources": sources,
        "languages": languages,
    }


def _provenance(manifest: Manifest) -> tuple[Shares, Shares]:
    """Documents and tokens by source and by language; empty where no provenance was written.

    Raises:
        DataError: a file cannot be read.
    """
    sources: Shares = {}
    languages: Shares = {}
    for shard in manifest.shards:
        if shard.provenance is None:
            continue
        path = manifest.directory / shard.provenance.path
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["source", "language", "tokens"]):
                    for name, counted in (("source", sources), ("language", languages)):
                        _count(batch, name, counted)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read the provenance {path}: {error}") from error
    return _most_first(sources), _most_first(languages)


def _most_first(shares: Shares) -> Shares:
    return dict(sorted(shares.items(), key=lambda one: (-one[1]["tokens"], one[0])))


def _count(batch: pa.RecordBatch, column: str, counted: Shares) -> None:
    table = pa.Table.from_batches([batch]).select([column, "tokens"])
    table = table.set_column(0, column, table.column(column).cast(pa.string()))
    grouped = table.group_by(column, use_threads=False).aggregate([("tokens", "count"), ("tokens", "sum")])
    for row in grouped.to_pylist():
        name = row[column]
        if name not in counted and len(counted) >= _MOST_NAMES:
            name = OTHERS
        share = counted.setdefault(name, {"documents": 0, "tokens": 0})
        share["documents"] += row["tokens_count"]
        share["tokens"] += row["tokens_sum"]


def format_stats(stats: dict[str, Any]) -> str:
    """Statistics as text: a table with one column per split, then each split's histogram and sources."""
    keys = [key for key in next(iter(stats.values())) if key not in ("sources", "languages")]
    rows = [["", *stats]]
    rows += [[key.replace("_", " "), *(_cell(split[key]) for split in stats.values())] for key in keys]
    lines = _aligned(rows)
    for name, split in stats.items():
        lines += ["", f"{name}: tokens per document"]
        lines += _aligned(list(_histogram_rows(split["document_tokens"]["histogram"])))
        for key in ("sources", "languages"):
            if set(split[key]) - {""}:
                lines += ["", *_aligned(list(_share_rows(f"{name}: {key}", split[key], split["tokens"])))]
    return "\n".join(lines)


def _histogram_rows(bins: list[list[int]]) -> Iterator[list[str]]:
    most = max(count for _, count in bins)
    for least, count in bins:
        yield [f"  {least:,} to {max(2 * least - 1, 0):,}", f"{count:,}", "#" * -(-count * _BAR // most)]


def _share_rows(title: str, shares: Shares, total: int) -> Iterator[list[str]]:
    yield [title, "documents", "tokens", "share"]
    for name, share in list(shares.items())[:_SHOWN_NAMES]:
        documents, tokens = share["documents"], share["tokens"]
        yield [f"  {name or '(unknown)'}", f"{documents:,}", f"{tokens:,}", f"{tokens / total:.1%}"]
    if len(shares) > _SHOWN_NAMES:
        yield [f"  and {len(shares) - _SHOWN_NAMES:,} more: --json has them", "", "", ""]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows with the first column and bars to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell if cell.startswith("#") else cell.rjust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{key}={number:,}" for key, number in value.items() if key != "histogram")
    return f"{value:.4%}" if isinstance(value, float) else f"{value:,}"
