"""Reads tokens, documents and sentences of a split by position.

Nothing here knows the order of samples or what they mean. Where the bytes come from is the business of
`pretrain.data.access`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.shard_format import Manifest
from pretrain.data.access.local import LocalShards
from pretrain.data.access.source import Source
from pretrain.data.blocks import U32, CheckedBlocks
from pretrain.data.philox import I64

Tokens = npt.NDArray[np.integer]


class BlockReader:
    """Random access to the tokens, documents and sentences of one split. Not thread-safe.

    Attributes:
        manifest: the split.
        token_starts: [blocks + 1] int64, number of the first token of each block in the corpus stream.
        remote: reads wait for a network, so `want` is of use.
    """

    def __init__(self, manifest: Manifest, verify: bool = True, source: Source | None = None) -> None:
        """Set up; no shard is opened yet.

        Args:
            manifest: the split.
            verify: check each block against its hash when it is first read.
            source: its shards; None has them as files beside the manifest.
        """
        self.manifest = manifest
        self.token_starts: I64 = starts_of(manifest.blocks["tokens"])
        self._source: Source = source or LocalShards(manifest)
        self._blocks = CheckedBlocks(manifest, self._source, verify)
        self._itemsize = manifest.token_dtype.itemsize
        self.remote = self._source.remote

    def read(self, starts: I64, lengths: I64 | int) -> Tokens:
        """Tokens of ranges of the corpus stream, one range behind the other. The stream is a ring.

        Args:
            starts: [n] first tokens, >= 0; counted on behind the end of the stream, they begin it anew.
            lengths: [n] tokens of each range, or one number for all.

        Returns:
            [sum of lengths] of `manifest.token_dtype`.

        Raises:
            BadBlock: a shard is missing, cut short or does not match its hash.
            UnreadableBlock: it cannot be read for another reason.
        """
        block, inside, length = self._parts(starts, np.broadcast_to(lengths, starts.shape))
        if self._source.remote:
            self._source.want(np.unique(block).tolist())
        for unknown in np.unique(block[~self._blocks.verified[block]]).tolist():
            self._blocks.verify(unknown)
        table = self.manifest.blocks
        offsets = (table["offset"][block].astype(np.int64) + inside * self._itemsize).tolist()
        sizes, shards = (length * self._itemsize).tolist(), table["shard"][block].tolist()
        tokens = np.empty(int(length.sum()), dtype=self.manifest.token_dtype)
        buffer = tokens.view(np.uint8).data
        if not self._source.gather(shards, offsets, sizes, buffer):
            done = 0
            for part in zip(shards, block.tolist(), offsets, sizes, strict=True):
                end = done + part[-1]
                self._blocks.read(*part[:-1], buffer[done:end])
                done = end
        return tokens

    def _parts(self, starts: I64, lengths: I64) -> tuple[I64, I64, I64]:
        """([m] block, [m] token in it, [m] tokens) of ranges, in order; a part of one for each block."""
        first = starts % self.token_starts[-1]
        block = np.searchsorted(self.token_starts, first, side="right") - 1
        inside, left = first - self.token_starts[block], lengths
        length = np.minimum(left, self.token_starts[block + 1] - first)
        if np.array_equal(length, left):
            return block, inside, length
        row = np.arange(len(starts))
        found = [(row, block, inside, length)]
        while (more := np.flatnonzero(left > length)).size:
            row, block, left = row[more], (block[more] + 1) % len(self.manifest.blocks), (left - length)[more]
            length = np.minimum(left, self.token_starts[block + 1] - self.token_starts[block])
            found.append((row, block, np.zeros_like(length), length))
        rows, *parts = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(rows, kind="stable")
        block, inside, length = (part[order] for part in parts)
        return block, inside, length

    def want(self, starts: I64, lengths: bool = False) -> None:
        """Say which tokens will be read soon, so that a remote source begins to fetch their blocks.

        Args:
            starts: [n] token numbers, as for `read`.
            lengths: the lengths of documents and sentences will be read, too.
        """
        if self._source.remote:
            blocks = np.searchsorted(self.token_starts, starts % self.token_starts[-1], side="right") - 1
            for lengths_too in (False, True)[: 1 + lengths]:
                self._source.want(np.unique(blocks).tolist(), lengths_too)

    def documents(self, block: int) -> U32:
        """[D] tokens of each document of a block, eod included; fails as `read` does."""
        return self._blocks.lengths(block)[0]

    def sentences(self, block: int) -> tuple[U32, U32]:
        """([D] sentences of each document, [sum of these] tokens of each sentence) of a block.

        Raises:
            DataError: the corpus has no sentences.
            BadBlock: the shard cannot be read, or is damaged.
        """
        layout = self.manifest.layout(block)
        if layout.sent is None:
            raise DataError(
                f"{self.manifest.origin} has no sentence boundaries, which BERT's sentence pairs need; "
                "prepare the corpus with sentences"
            )
        documents, numbers = self._blocks.lengths(block)
        counts, lengths = numbers[: len(documents)], numbers[len(documents) :]
        if int(counts.sum(dtype=np.int64)) != len(lengths):
            raise self._blocks.bad(block, layout.sent.offset, "sentence counts do not add up")
        ends = starts_of(lengths)[starts_of(counts)]
        if not np.array_equal(np.diff(ends), documents.astype(np.int64) - 1):
            raise self._blocks.bad(
                block, layout.sent.offset, "sentence lengths do not add up to the documents"
            )
        return counts, lengths

    def stop(self) -> None:
        """Let reads in other threads fail at once, also those that wait, until `close`."""
        self._source.stop()

    def close(self) -> None:
        """Close every shard. The reader may be used again; it opens them anew."""
        self._blocks.damaged.clear()
        self._source.close()


def starts_of(lengths: npt.NDArray[np.integer]) -> I64:
    """[n + 1] int64: where each of n consecutive pieces begins, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, dtype=np.int64, out=starts[1:])
    return starts
