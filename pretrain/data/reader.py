"""Reads tokens, documents and sentences of a split by position.

Nothing here knows the order of samples or what they mean. Where the bytes come from is the business of
`pretrain.data.access`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.shard_format import Manifest
from pretrain.data.access.local import LocalShards
from pretrain.data.access.source import Source
from pretrain.data.blocks import U32, CheckedBlocks
from pretrain.data.philox import I64

Tokens = npt.NDArray[np.integer]


_NONE = np.empty(0, dtype=np.int64)
_nbytes = attrgetter("nbytes")


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
        self._dtype = manifest.token_dtype
        self.remote = self._source.remote

    def read_tokens(self, starts: I64, lengths: I64) -> list[Tokens]:
        """Ranges of the corpus stream, one array of `manifest.token_dtype` each; see `read_into`."""
        buffers = [np.empty(int(length), dtype=self._dtype) for length in lengths]
        self.read_into(starts, buffers)
        return buffers

    def read_rows(self, starts: I64, length: int) -> Tokens:
        """[n, length] tokens of `manifest.token_dtype`: row i begins at token starts[i] of the stream."""
        rows = np.empty((len(starts), length), dtype=self._dtype)
        self.read_into(starts, rows)
        return rows

    def read_into(self, starts: I64, buffers: Tokens | Sequence[Tokens]) -> None:
        """Fill each buffer with tokens from starts[i] on. The stream is a ring: the first follows the last.

        Args:
            starts: [n] token numbers in the corpus stream, >= 0.
            buffers: n contiguous arrays of `manifest.token_dtype`.

        Raises:
            BadBlock: a shard is missing, cut short or does not match its hash.
            UnreadableBlock: it cannot be read for another reason.
        """
        positions = starts % self.token_starts[-1]
        blocks = np.searchsorted(self.token_starts, positions, side="right") - 1
        if self._source.remote:
            self._source.want(np.unique(blocks).tolist())
        inside = positions - self.token_starts[blocks]
        rows = self.manifest.blocks[blocks]
        offsets = rows["offset"].astype(np.int64) + inside * self._itemsize
        columns = (blocks, inside, rows["shard"], offsets, rows["tokens"] - inside)
        rest = self._read_plain(columns, buffers)
        if not rest.size:
            return
        places = np.stack([column[rest] for column in columns], axis=1).tolist()
        for number, (block, at, shard, offset, available) in zip(rest.tolist(), places, strict=True):
            buffer = buffers[number]
            if not self._blocks.verified[block]:
                self._blocks.verify(block)
            if len(buffer) <= available:
                self._blocks.read(shard, block, offset, buffer.data)
            else:
                self._read_across(block, at, buffer)

    def _read_plain(self, columns: tuple[I64, ...], buffers: Tokens | Sequence[Tokens]) -> I64:
        """Fill the buffers that need no care: local, of verified blocks, each within one of them.

        Returns:
            Numbers of the other buffers.
        """
        blocks, _, shards, offsets, available = columns
        if not isinstance(self._source, LocalShards) or self._blocks.damaged:
            return np.arange(len(blocks))
        plain = self._blocks.verified[blocks] & (_lengths_of(buffers) <= available)
        rest = _NONE
        if not plain.all():
            chosen, rest = np.flatnonzero(plain), np.flatnonzero(~plain)
            shards, offsets = shards[chosen], offsets[chosen]
            buffers = [buffers[number] for number in chosen.tolist()]
        wanted = buffers.nbytes if isinstance(buffers, np.ndarray) else sum(map(_nbytes, buffers))
        if self._source.read_many(shards.tolist(), offsets.tolist(), buffers) == wanted:
            return rest
        return np.arange(len(blocks))

    def want(self, starts: I64, lengths: bool = False) -> None:
        """Say which tokens will be read soon, so that a remote source begins to fetch their blocks.

        Args:
            starts: [n] token numbers, as for `read_into`.
            lengths: the lengths of documents and sentences will be read, too.
        """
        if self._source.remote:
            blocks = np.searchsorted(self.token_starts, starts % self.token_starts[-1], side="right") - 1
            for lengths_too in (False, True)[: 1 + lengths]:
                self._source.want(np.unique(blocks).tolist(), lengths_too)

    def documents(self, block: int) -> U32:
        """[D] tokens of each document of a block, eod included; fails as `read_into` does."""
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

    def _read_across(self, block: int, inside: int, buffer: Tokens) -> None:
        """Fill a buffer from token `inside` of a block on, over as many blocks as it takes."""
        done = 0
        while done < len(buffer):
            if not self._blocks.verified[block]:
                self._blocks.verify(block)
            row = self.manifest.blocks[block]
            count = min(int(row["tokens"]) - inside, len(buffer) - done)
            offset = int(row["offset"]) + inside * self._itemsize
            self._blocks.read(int(row["shard"]), block, offset, buffer[done : done + count].data)
            done, inside, block = done + count, 0, (block + 1) % len(self.manifest.blocks)


def _lengths_of(buffers: Tokens | Sequence[Tokens]) -> I64 | int:
    if isinstance(buffers, np.ndarray):
        return int(buffers.shape[1])
    return np.fromiter(map(len, buffers), np.int64, len(buffers))


def starts_of(lengths: npt.NDArray[np.integer]) -> I64:
    """[n + 1] int64: where each of n consecutive pieces begins, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, dtype=np.int64, out=starts[1:])
    return starts
