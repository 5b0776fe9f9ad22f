"""The packing of a whole split on disk, and the samples that are read by it.

The split is packed window by window (consecutive blocks), so that building needs the lengths of one window
in memory and a sample lies within one window. Windows are large enough that what each loses at its end does
not count. The index takes 8 bytes a piece and 8 a sample; it depends on the corpus and seq_length only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from pretrain.data.index_files import (
    MAX_PIECE,
    damaged,
    index_directory,
    join_pieces,
    map_array,
    split_pieces,
    sync,
)
from pretrain.data.objectives import DocumentRows
from pretrain.data.packing import pack_documents
from pretrain.data.philox import I64, SampleIds
from pretrain.data.reader import BlockReader

INDEX_VERSION = 1
WINDOW_TOKENS = 1 << 25
WINDOW_SAMPLES = 1 << 10
"""A window has so many tokens, or so many samples where they are long."""
WINDOW_DOCUMENTS = 1 << 20
"""A window ends sooner where documents are tiny: about 100 bytes of memory each."""

PIECES_NAME, SAMPLES_NAME, SUMMARY_NAME = "pieces.bin", "samples.bin", "summary.json"


@dataclass(frozen=True, slots=True)
class PackingIndex:
    """The samples of a split.

    Attributes:
        path: the directory it was read from.
        pieces: [P] ranges of the corpus stream, as `join_pieces` makes them; mapped from the file.
        samples: [n + 1] first piece of each sample; mapped from the file.
        padding_share: part of all places that no token fills.
    """

    path: Path
    pieces: npt.NDArray[np.uint64]
    samples: npt.NDArray[np.uint64]
    padding_share: float


def open_packing(reader: BlockReader, seq_length: int, cache: Path) -> PackingIndex:
    """Open the packing of a split, building it where it is missing.

    Args:
        reader: the split.
        seq_length: places in a sample.
        cache: directory for indexes.

    Raises:
        DataError: no document has two tokens, a damaged shard or index, or a cache that cannot be written.
    """
    if seq_length > MAX_PIECE:
        raise DataError(f"batch.seq_length: {seq_length} is over {MAX_PIECE}, the most for data.packing")
    parameters = (INDEX_VERSION, reader.manifest.hash, seq_length)
    path = index_directory(cache, "packing", parameters, lambda draft: _build(reader, seq_length, draft))
    pieces, samples = (map_array(path / name, "<u8") for name in (PIECES_NAME, SAMPLES_NAME))
    try:
        summary = json.loads((path / SUMMARY_NAME).read_bytes())
        filled = float(summary["tokens"]) / (seq_length * (len(samples) - 1))
    except (OSError, ValueError, KeyError) as error:
        raise damaged(path, str(error)) from error
    if summary["samples"] != len(samples) - 1 or summary["pieces"] != len(pieces):
        raise damaged(path, "it is incomplete")
    return PackingIndex(path, pieces, samples, 1.0 - filled)


def _build(reader: BlockReader, seq_length: int, directory: Path) -> None:
    samples = pieces = tokens = 0
    with (directory / PIECES_NAME).open("wb") as pieces_file, (directory / SAMPLES_NAME).open("wb") as file:
        file.write(np.zeros(1, dtype="<u8").tobytes())
        for window in _windows(reader, max(WINDOW_TOKENS, WINDOW_SAMPLES * seq_length)):
            packed = pack_documents(window.lengths, seq_length)
            pieces_file.write(join_pieces(window.start + packed.starts, packed.lengths).tobytes())
            file.write((pieces + np.cumsum(packed.counts)).astype("<u8").tobytes())
            samples, pieces = samples + len(packed.counts), pieces + len(packed.starts)
            tokens += int(packed.lengths.sum())
        sync(pieces_file)
        sync(file)
    if not samples:
        raise DataError(f"{reader.manifest.origin} has no document with text, so nothing to pack")
    summary = {"samples": samples, "pieces": pieces, "tokens": tokens}
    with (directory / SUMMARY_NAME).open("wb") as file:
        file.write(json.dumps(summary).encode())
        sync(file)


class _Window(NamedTuple):
    """Consecutive documents; `start` is the first token in the corpus stream."""

    start: int
    lengths: I64


def _windows(reader: BlockReader, tokens: int) -> Iterator[_Window]:
    """The documents of a split, whole blocks together."""
    start, held, lengths = 0, 0, list[I64]()
    for block in range(len(reader.manifest.blocks)):
        lengths.append(reader.documents(block).astype(np.int64))
        held += len(lengths[-1])
        end = int(reader.token_starts[block + 1])
        if end - start >= tokens or held >= WINDOW_DOCUMENTS:
            yield _Window(start, np.concatenate(lengths))
            start, held, lengths = end, 0, []
    if lengths:
        yield _Window(start, np.concatenate(lengths))


class PackedSamples:
    """Reads packed documents.

    Attributes:
        count: samples in an epoch.
        index: what they are made of.
    """

    def __init__(self, reader: BlockReader, index: PackingIndex, seq_length: int) -> None:
        self.count, self.index = len(index.samples) - 1, index
        self._reader, self._seq_length = reader, seq_length

    def blank(self) -> DocumentRows:
        """What `read` would give for one sample of token 0, in place of one that cannot be read."""
        tokens = np.zeros((1, self._seq_length), dtype=self._reader.manifest.token_dtype)
        return DocumentRows(tokens, tokens, tokens > 0, tokens > 0)

    def want(self, ids: SampleIds) -> None:
        """Say which samples will be read soon."""
        starts, lengths, _ = self._pieces(ids)
        self._reader.want(np.concatenate([starts, starts + lengths]))

    def parts(self, ids: SampleIds) -> list[list[tuple[int, int]]]:
        """(first token in the corpus stream, tokens) of the one range of each piece of one sample."""
        starts, lengths, _ = self._pieces(ids)
        return [[place] for place in zip(starts.tolist(), lengths.tolist(), strict=True)]

    def read(self, ids: SampleIds) -> DocumentRows:
        """Read samples.

        Args:
            ids: B samples of this corpus.

        Returns:
            B samples, padded with token 0 at their ends.

        Raises:
            DataError: a shard or the index is damaged.
        """
        starts, lengths, counts = self._pieces(ids)
        ends = np.cumsum(lengths + 1)  # one more token each: the last label
        flat = self._reader.read(starts, lengths + 1)
        first = np.zeros(len(flat), dtype=np.bool_)
        first[ends - lengths - 1] = True
        last = np.zeros(len(flat), dtype=np.bool_)
        last[ends - 1] = True
        filled = np.add.reduceat(lengths, np.cumsum(counts) - counts)
        real = np.arange(self._seq_length) < filled[:, None]
        tokens = np.zeros(real.shape, dtype=self._reader.manifest.token_dtype)
        labels, begins = np.zeros_like(tokens), np.zeros(real.shape, dtype=np.bool_)
        tokens[real], labels[real], begins[real] = flat[~last], flat[~first], first[~last]
        padded = np.flatnonzero(filled < self._seq_length)
        begins[padded, filled[padded]] = True
        return DocumentRows(tokens, labels, begins, real)

    def _pieces(self, ids: SampleIds) -> tuple[I64, I64, I64]:
        """([P] starts, [P] lengths) of the pieces of samples in order, and [B] how many each has."""
        first, stop = (self.index.samples[ids.sample + end].astype(np.int64) for end in (0, 1))
        counts = stop - first
        if (counts < 1).any():
            raise damaged(self.index.path, "a sample has no piece")
        at = np.arange(int(counts.sum())) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        starts, lengths = split_pieces(self.index.pieces[at])
        return starts, lengths, counts
