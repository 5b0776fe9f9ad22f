"""Where the sentences of a block lie, and a bounded cache of that."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pretrain.data.reader import BlockReader, starts_of

MAX_CACHE_BYTES = 128 << 20
"""Enough for the blocks of a shuffle window (512 groups) at usual sentence lengths."""

U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class SentenceTable:
    """The sentences of a block, empty ones left out.

    Attributes:
        starts: [n] first token of each sentence, counted in the block.
        ends: [n] one past its last token.
        first: [documents + 1] first sentence of each document that has any; then n.
    """

    starts: U32
    ends: U32
    first: U32

    @property
    def documents(self) -> int:
        """Documents with at least one sentence."""
        return len(self.first) - 1

    @property
    def nbytes(self) -> int:
        """Memory of the three arrays."""
        return self.starts.nbytes + self.ends.nbytes + self.first.nbytes


def read_table(reader: BlockReader, block: int) -> SentenceTable:
    """Read the sentence table of a block.

    Raises:
        DataError: the corpus has no sentences, or the shard is damaged.
    """
    counts, lengths = reader.sentences(block)
    document = np.repeat(np.arange(len(counts)), counts)
    # Each document before a sentence put one eod token before it.
    starts = starts_of(lengths)[:-1] + document
    filled = lengths > 0
    per_document = np.bincount(document[filled], minlength=len(counts))
    return SentenceTable(
        starts=starts[filled].astype(np.uint32),
        ends=(starts + lengths)[filled].astype(np.uint32),
        first=starts_of(per_document[per_document > 0]).astype(np.uint32),
    )


class SentenceTables:
    """Sentence tables of a split, the ones used last kept in memory."""

    def __init__(self, reader: BlockReader, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self.reader = reader
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tables: OrderedDict[int, SentenceTable] = OrderedDict()

    def table(self, block: int) -> SentenceTable:
        """The table of a block; errors as `read_table`."""
        found = self._tables.get(block)
        if found is not None:
            self._tables.move_to_end(block)
            return found
        found = self._tables[block] = read_table(self.reader, block)
        self._bytes += found.nbytes
        while self._bytes > self._max_bytes and len(self._tables) > 1:
            self._bytes -= self._tables.popitem(last=False)[1].nbytes
        return found
