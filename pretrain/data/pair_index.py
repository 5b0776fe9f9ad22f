"""Index of BERT's samples: which run of sentences each one is cut from.

Runs depend on the lengths of all sentences before them in their document, so they cannot be computed from a
sample number alone. One pass over the sentence lengths (not the tokens) writes 8 bytes a sample into a cache
directory. It depends on the corpus and the parameters only, never on the seed, the rank or the world.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from pretrain.data.philox import I64, SHIFT32, SampleIds, below, derive_key, draw_words
from pretrain.data.reader import BlockReader, starts_of
from pretrain.data.sentences import SentenceTable, read_table

INDEX_VERSION = 1
PAIR_DTYPE = np.dtype([("sentence", "<u4"), ("sentences", "<u2"), ("target", "<u2")])
"""First sentence in the block's table, number of sentences, tokens aimed at."""
STARTS_NAME, PAIRS_NAME = "starts.npy", "pairs.bin"
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


def open_pair_index(reader: BlockReader, seq_length: int, short_probability: float, cache: Path) -> PairIndex:
    """Open the index of a split, building it where it is missing.

    Any number of processes may do so at once: each writes under its own name, and the first to rename wins.

    Args:
        reader: the split.
        seq_length: tokens in a sample, special tokens included.
        short_probability: share of samples that aim at a random shorter length.
        cache: directory for indexes; created where missing.

    Raises:
        DataError: no sentences in the corpus, too few documents for random partners, a damaged shard or
            index, or a cache that cannot be written.
    """
    if seq_length > MAX_SEQ_LENGTH:
        raise DataError(
            f"batch.seq_length: {seq_length} is over {MAX_SEQ_LENGTH}, the most for sentence pairs"
        )
    parameters = [INDEX_VERSION, reader.manifest.hash, seq_length, short_probability]
    path = cache / f"pairs-{xxhash.xxh3_128_hexdigest(json.dumps(parameters).encode())}"
    if not path.exists():
        draft = cache / f".{path.name}.{uuid.uuid4().hex}"
        try:
            draft.mkdir(parents=True)
            _build(reader, seq_length - SPECIAL_TOKENS, short_probability, draft)
            _publish(draft, path)
        except OSError as error:
            raise DataError(f"cannot write the sample index {path}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return _load(path, len(reader.manifest.blocks))


def _publish(draft: Path, path: Path) -> None:
    try:
        draft.rename(path)
    except OSError:
        # A directory is there already: another process built the same bytes first.
        if not path.is_dir():
            raise


def _load(path: Path, blocks: int) -> PairIndex:
    try:
        starts: I64 = np.load(path / STARTS_NAME)
        pairs = np.memmap(path / PAIRS_NAME, dtype=PAIR_DTYPE, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the sample index {path} cannot be read ({error}); delete it and start again"
        ) from error
    if len(starts) != blocks + 1 or int(starts[-1]) != len(pairs):
        raise DataError(f"the sample index {path} is incomplete; delete it and start again")
    return PairIndex(path, starts, pairs)


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
        _sync(file)
    where = reader.manifest.directory
    if documents < 2:
        raise DataError(
            f"{where} has {documents} document with text, but next-sentence prediction takes every second B "
            "from another document; add documents"
        )
    if not counts.any():
        raise DataError(
            f"{where} has no document with two sentences, so no sentence pair; check how the corpus was "
            "split into sentences"
        )
    with (directory / STARTS_NAME).open("wb") as file:
        np.save(file, starts_of(counts))
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


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
