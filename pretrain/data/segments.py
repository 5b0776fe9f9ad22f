"""BERT samples without pairs: one segment of a document, for masked language modelling alone.

A document is cut into segments of the length of a sample, some of them shorter; the last one is what remains.
Needs no sentence boundaries, so it also serves streams of integers that have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from pretrain.data.objectives import PairBatch, Vocabulary
from pretrain.data.philox import I64, SHIFT32, SampleIds, below, derive_key, draw_words
from pretrain.data.reader import BlockReader, starts_of
from pretrain.data.skip import IGNORED_LABEL

INDEX_VERSION = 1
SPECIAL_TOKENS = 2  # [CLS] A [SEP]
PIECES_NAME, STARTS_NAME = "pieces.bin", "starts.bin"


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """The samples of a split.

    Attributes:
        path: the directory it was read from.
        starts: [blocks + 1] int64, first sample of each block.
        pieces: [samples] ranges of the corpus stream, as `join_pieces` makes them; mapped from the file.
    """

    path: Path
    starts: I64
    pieces: npt.NDArray[np.uint64]


def open_segments(
    reader: BlockReader, seq_length: int, short_probability: float, cache: Path
) -> SegmentIndex:
    """Open the index of a split, building it where it is missing.

    Args:
        reader: the split.
        seq_length: tokens in a sample, special tokens included.
        short_probability: share of samples that are cut at a random shorter length.
        cache: directory for indexes.

    Raises:
        DataError: no document has text, a damaged shard or index, or a cache that cannot be written.
    """
    if seq_length > MAX_PIECE:
        raise DataError(f"batch.seq_length: {seq_length} is over {MAX_PIECE}, the most for BERT")

    def build(directory: Path) -> None:
        _build(reader, seq_length - SPECIAL_TOKENS, short_probability, directory)

    parameters = (INDEX_VERSION, reader.manifest.hash, seq_length, short_probability)
    path = index_directory(cache, "segments", parameters, build)
    starts: I64 = np.asarray(map_array(path / STARTS_NAME, "<i8"))
    pieces = map_array(path / PIECES_NAME, "<u8")
    if len(starts) != len(reader.manifest.blocks) + 1 or int(starts[-1]) != len(pieces):
        raise damaged(path, "it is incomplete")
    return SegmentIndex(path, starts, pieces)


def _build(reader: BlockReader, longest: int, short_probability: float, directory: Path) -> None:
    key = derive_key(0, "short segments", reader.manifest.hash)
    counts = np.zeros(len(reader.manifest.blocks), dtype=np.int64)
    with (directory / PIECES_NAME).open("wb") as file:
        for block in range(len(counts)):
            documents = reader.documents(block).astype(np.int64)
            ids = SampleIds(
                np.full(len(documents), key), np.full(len(documents), block), starts_of(documents)[:-1]
            )
            starts, lengths = cut_segments(documents, ids, longest, short_probability)
            file.write(join_pieces(reader.token_starts[block] + starts, lengths).tobytes())
            counts[block] = len(starts)
        sync(file)
    if not counts.any():
        raise DataError(f"{reader.manifest.origin} has no document with text")
    with (directory / STARTS_NAME).open("wb") as file:
        file.write(starts_of(counts).astype("<i8").tobytes())
        sync(file)


def cut_segments(documents: I64, ids: SampleIds, longest: int, short_probability: float) -> tuple[I64, I64]:
    """Cut documents.

    Args:
        documents: [D] tokens of each, end of document included; that is in no segment.
        ids: [D] what the random lengths depend on.
        longest: tokens in a segment.
        short_probability: share of segments that are cut at a random length of 2 or more.

    Returns:
        ([n] first token of each segment in the row of all documents, [n] tokens), ascending.
    """
    begin, end = starts_of(documents)[:-1], np.cumsum(documents) - 1
    found: list[tuple[I64, I64]] = []
    while True:  # one step cuts the next segment of every document
        active = np.flatnonzero(begin < end)
        begin, end, ids = begin[active], end[active], ids.take(active)
        if not active.size:
            break
        draws = draw_words(SampleIds(ids.key, ids.epoch, begin), 0, 2)
        short = draws[:, 0].astype(np.float64) < short_probability * float(1 << int(SHIFT32))
        target = np.where(short, 2 + below(draws[:, 1], np.uint64(max(longest - 1, 1))), longest)
        stop = np.minimum(begin + target, end)
        found.append((begin, stop - begin))
        begin = stop
    starts, lengths = (
        np.concatenate([np.empty(0, dtype=np.int64), *(part[column] for part in found)]) for column in (0, 1)
    )
    order = np.argsort(starts)
    return starts[order], lengths[order]


class SegmentSamples:
    """The segments of one corpus.

    Attributes:
        count: samples in an epoch.
    """

    def __init__(
        self, reader: BlockReader, index: SegmentIndex, vocabulary: Vocabulary, seq_length: int
    ) -> None:
        self.count = len(index.pieces)
        self._reader, self._index, self._vocabulary, self._seq_length = reader, index, vocabulary, seq_length

    def blank(self) -> PairBatch:
        """What `read` would give for one sample with one token, in place of one that cannot be read."""
        return self._lay_out(np.array([self._vocabulary.mask_id]), np.array([1]))

    def want(self, ids: SampleIds) -> None:
        """Say which samples will be read soon."""
        starts, lengths = split_pieces(self._index.pieces[ids.sample])
        self._reader.want(np.concatenate([starts, starts + lengths]))

    def parts(self, ids: SampleIds) -> list[list[tuple[int, int]]]:
        """(first token in the corpus stream, tokens) of the one range of the text of one sample."""
        starts, lengths = split_pieces(self._index.pieces[ids.sample])
        return [list(zip(starts.tolist(), lengths.tolist(), strict=True))]

    def read(self, ids: SampleIds) -> PairBatch:
        """Read segments.

        Args:
            ids: B samples of this corpus.

        Returns:
            B samples of seq_length tokens; all of segment 0, and no next_sentence_labels to predict.

        Raises:
            DataError: a shard or the index is damaged.
        """
        starts, lengths = split_pieces(self._index.pieces[ids.sample])
        if (lengths < 1).any() or (lengths > self._seq_length - SPECIAL_TOKENS).any():
            raise damaged(self._index.path, "a segment has no possible length")
        return self._lay_out(self._reader.read(starts, lengths), lengths)

    def _lay_out(self, text: npt.NDArray[np.integer], lengths: I64) -> PairBatch:
        """Put the text of all samples, in order, between the special tokens."""
        column, end = np.arange(self._seq_length), 1 + lengths[:, None]
        tokens = np.full((len(lengths), self._seq_length), self._vocabulary.pad_id, dtype=np.int64)
        tokens[(column >= 1) & (column < end)] = text
        tokens[:, 0] = self._vocabulary.cls_id
        np.put_along_axis(tokens, end, self._vocabulary.sep_id, axis=1)
        return PairBatch(
            tokens=tokens,
            token_types=np.zeros_like(tokens),
            padding_mask=column <= end,
            next_sentence_labels=np.full(len(lengths), IGNORED_LABEL, dtype=np.int64),
        )
