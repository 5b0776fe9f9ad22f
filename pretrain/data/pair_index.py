"""Index of BERT's samples: which run of sentences each one is cut from.

Runs depend on the lengths of all sentences before them in their document, so they cannot be computed from a
sample number alone. One pass over the sentence lengths (not the tokens) writes 8 bytes a sample into a cache
directory. It depends on the corpus and the parameters only, never on the seed, the rank or the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from pretrain.data.index_files import damaged, index_directory, map_array, sync
from pretrain.data.philox import I64, SHIFT32, SampleIds, below, derive_key, draw_words
from pretrain.data.reader import BlockReader, starts_of
from pretrain.data.sentences import SentenceTable, read_table

INDEX_VERSION = 2
PAIR_DTYPE = np.dtype([("sentence", "<u4"), ("sentences", "<u2"), ("target", "<u2")])
"""First sentence in the block's table, number of sentences, tokens aimed at."""
STARTS_NAME, PAIRS_NAME = "starts.bin", "pairs.bin"
SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]
MAX_SEQ_LENGTH = 1 << 16


@dataclass(frozen=True, slots=True)
class PairIndex:
    """The samples of a split.

    Attributes:
        path: the directory it was read from.
        starts: [blocks + 1] int64, first sample of each block.
        pairs: [samples] `PAIR_DTYPE`, mapped from the file.
    """

    path: Path
    starts: I64
    pairs: npt.NDArray[np.void]


def open_pair_index(
    reader: BlockReader, seq_length: int, short_probability: float, cache: Path, swapped: bool = False
) -> PairIndex:
    """Open the index of a split, building it where it is missing.

    Args:
        reader: the split.
        seq_length: tokens in a sample, special tokens included.
        short_probability: share of samples that aim at a random shorter length.
        cache: directory for indexes; created where missing.
        swapped: pairs are swapped, so no sample needs text of another document.

    Raises:
        DataError: no sentences in the corpus, too few documents for random partners, a damaged shard or
            index, or a cache that cannot be written.
    """
    if seq_length > MAX_SEQ_LENGTH:
        raise DataError(
            f"batch.seq_length: {seq_length} is over {MAX_SEQ_LENGTH}, the most for sentence pairs"
        )

    def build(directory: Path) -> None:
        _build(reader, seq_length - SPECIAL_TOKENS, short_probability, directory)

    parameters = (INDEX_VERSION, reader.manifest.hash, seq_length, short_probability)
    path = index_directory(cache, "pairs", parameters, build)
    starts: I64 = np.asarray(map_array(path / STARTS_NAME, "<i8"))
    pairs: npt.NDArray[np.void] = map_array(path / PAIRS_NAME, PAIR_DTYPE)
    blocks = len(reader.manifest.blocks)
    if len(starts) != blocks + 2 or int(starts[blocks]) != len(pairs):
        raise damaged(path, "it is incomplete")
    if starts[-1] < 2 and not swapped:
        raise DataError(
            f"{reader.manifest.origin} has {starts[-1]} document with text, but next-sentence prediction "
            "takes every second B from another document; add documents or set data.sentence_pairs: sop"
        )
    return PairIndex(path, starts[:-1], pairs)


def _build(reader: BlockReader, longest: int, short_probability: float, directory: Path) -> None:
    """Write the index files; `longest` is the number of tokens of A and B together."""
    key = derive_key(0, "short sequences", reader.manifest.hash)
    counts, documents = np.zeros(len(reader.manifest.blocks), dtype=np.int64), 0
    with (directory / PAIRS_NAME).open("wb") as file:
        for block in range(len(counts)):
            table = read_table(reader, block)
            targets = _targets(table, block, longest, short_probability, key)
            runs = cut_runs(table, targets)
            file.write(runs.tobytes())
            counts[block], documents = len(runs), documents + table.documents
        sync(file)
    if not counts.any():
        raise DataError(
            f"{reader.manifest.origin} has no document with two sentences, so no sentence pair; check how "
            "the corpus was split into sentences, or set data.sentence_pairs: none"
        )
    with (directory / STARTS_NAME).open("wb") as file:
        file.write(np.append(starts_of(counts), documents).astype("<i8").tobytes())
        sync(file)


def _targets(table: SentenceTable, block: int, longest: int, short_probability: float, key: np.uint64) -> I64:
    """[n] tokens that a run beginning at each sentence aims at: `longest`, or rarely something from 2 up."""
    count = len(table.starts)
    ids = SampleIds(np.full(count, key), np.full(count, block), np.arange(count))
    draws = draw_words(ids, 0, 2)
    short = draws[:, 0].astype(np.float64) < short_probability * float(1 << int(SHIFT32))
    return np.where(short, 2 + below(draws[:, 1], np.uint64(longest - 1)), longest)


def cut_runs(table: SentenceTable, targets: I64) -> npt.NDArray[np.void]:
    """Cut each document into runs of sentences, as `create_pretraining_data.py` of the original BERT does.

    A run ends with the sentence that reaches its target. It has two sentences at least, because B must follow
    A; so a last sentence alone joins the run before it, and a document of one sentence has no run.

    Args:
        table: the sentences of a block.
        targets: [n] tokens aimed at by a run that begins at each sentence.

    Returns:
        `PAIR_DTYPE` rows in order of their first sentence.
    """
    ends = table.ends.astype(np.int64)
    current, last = table.first[:-1].astype(np.int64), table.first[1:].astype(np.int64)
    found: list[tuple[I64, I64]] = []
    while True:  # one step cuts the next run of every document
        active = last - current >= 2
        current, last = current[active], last[active]
        if not current.size:
            break
        stop = np.searchsorted(ends, table.starts[current] + targets[current]) + 1
        stop = np.minimum(np.maximum(stop, current + 2), last)
        stop = np.where(last - stop == 1, last, stop)
        found.append((current, stop))
        current = stop
    first = np.concatenate([np.empty(0, dtype=np.int64), *(run[0] for run in found)])
    stop = np.concatenate([np.empty(0, dtype=np.int64), *(run[1] for run in found)])
    order = np.argsort(first)
    runs = np.empty(len(first), dtype=PAIR_DTYPE)
    runs["sentence"], runs["sentences"] = first[order], (stop - first)[order]
    runs["target"] = targets[first[order]]
    return runs
