"""Reads tokens, documents and sentences of a split by position.

Nothing here knows the order of samples or what they mean. Where the bytes come from is the business of
`pretrain.data.access`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from data_tools.shard_format import Manifest, Member
from pretrain.data.access.errors import AccessError
from pretrain.data.access.local import LocalShards
from pretrain.data.access.source import Source
from pretrain.data.philox import I64

U32 = npt.NDArray[np.uint32]
Tokens = npt.NDArray[np.integer]


class BadBlock(DataError):
    """A block that is damaged or cannot be read.

    Attributes:
        block: its number in the block table.
        shard: path or URL of its shard.
        key: its number in the shard.
        offset: byte in the shard.
        problem: what is wrong with it.
    """

    def __init__(self, block: int, shard: str, key: int, offset: int, problem: str) -> None:
        super().__init__(
            f"shard {shard}, block {key:06d}, byte {offset}: {problem}; copy the shard again or rebuild the "
            "corpus"
        )
        self.block, self.shard, self.key, self.offset, self.problem = block, shard, key, offset, problem


class BlockReader:
    """Random access to the tokens, documents and sentences of one split. Not thread-safe.

    Attributes:
        manifest: the split.
        token_starts: [blocks + 1] int64, number of the first token of each block in the corpus stream.
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
        checked = not verify or self._source.verified
        self._verified = np.full(len(manifest.blocks), checked)
        self._verify_lengths = not checked
        self._bad_blocks: dict[int, BadBlock] = {}  # a read that failed after many attempts is not begun anew
        self._itemsize = manifest.token_dtype.itemsize
        self._dtype = manifest.token_dtype

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
        """
        positions = starts % self.token_starts[-1]
        blocks = np.searchsorted(self.token_starts, positions, side="right") - 1
        if self._source.remote:
            self._source.want(np.unique(blocks).tolist())
        inside = positions - self.token_starts[blocks]
        rows = self.manifest.blocks[blocks]
        offsets = rows["offset"].astype(np.int64) + inside * self._itemsize
        columns = (blocks, inside, rows["shard"], offsets, rows["tokens"] - inside)
        places = zip(*(column.tolist() for column in columns), strict=True)
        for (block, at, shard, offset, available), buffer in zip(places, buffers, strict=True):
            if not self._verified[block]:
                self._verify(block)
            if len(buffer) <= available:
                self._read(shard, block, offset, buffer.data)
            else:
                self._read_across(block, at, buffer)

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
        """[D] tokens of each document of a block, eod included.

        Raises:
            BadBlock: the shard cannot be read, or is damaged.
        """
        documents, _ = self._lengths(block)
        return documents

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
        documents, numbers = self._lengths(block)
        counts, lengths = numbers[: len(documents)], numbers[len(documents) :]
        if int(counts.sum(dtype=np.int64)) != len(lengths):
            raise self._bad(block, layout.sent.offset, "sentence counts do not add up")
        ends = starts_of(lengths)[starts_of(counts)]
        if not np.array_equal(np.diff(ends), documents.astype(np.int64) - 1):
            raise self._bad(block, layout.sent.offset, "sentence lengths do not add up to the documents")
        return counts, lengths

    def close(self) -> None:
        """Close every shard. The reader may be used again; it opens them anew."""
        self._bad_blocks.clear()
        self._source.close()

    def _read_across(self, block: int, inside: int, buffer: Tokens) -> None:
        """Fill a buffer from token `inside` of a block on, over as many blocks as it takes."""
        done = 0
        while done < len(buffer):
            if not self._verified[block]:
                self._verify(block)
            row = self.manifest.blocks[block]
            count = min(int(row["tokens"]) - inside, len(buffer) - done)
            offset = int(row["offset"]) + inside * self._itemsize
            self._read(int(row["shard"]), block, offset, buffer[done : done + count].data)
            done, inside, block = done + count, 0, (block + 1) % len(self.manifest.blocks)

    def _verify(self, block: int) -> None:
        member, row = self.manifest.layout(block).tok, self.manifest.blocks[block]
        payload = self._payload(block, member)
        if xxhash.xxh3_64_intdigest(payload) != int(row["xxh3"]):
            if not self._source.again(int(row["shard"])):
                raise self._bad(block, member.offset, "the tokens do not match their hash")
            return self._verify(block)
        self._verified[block] = True

    def _lengths(self, block: int) -> tuple[U32, U32]:
        """The content of a block's doc.bin and sent.bin; the second is empty where there are no sentences."""
        layout, row = self.manifest.layout(block), self.manifest.blocks[block]
        documents = self._payload(block, layout.doc)
        sentences = self._payload(block, layout.sent) if layout.sent else bytearray()
        digest = xxhash.xxh3_64_intdigest(documents + sentences) if self._verify_lengths else None
        if digest not in (None, int(row["lengths_xxh3"])):
            if self._source.again(int(row["shard"])):
                return self._lengths(block)
            raise self._bad(block, layout.doc.offset, "the lengths of documents do not match their hash")
        lengths = np.frombuffer(documents, dtype="<u4")
        if int(lengths.sum(dtype=np.int64)) != int(row["tokens"]):
            raise self._bad(block, layout.doc.offset, "document lengths do not add up")
        return lengths, np.frombuffer(sentences, dtype="<u4")

    def _payload(self, block: int, member: Member) -> bytearray:
        payload = bytearray(member.length)
        shard = int(self.manifest.blocks[block]["shard"])
        self._read(shard, block, member.offset, memoryview(payload))
        return payload

    def _read(self, shard: int, block: int, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from a byte offset of a shard."""
        if not buffer.nbytes:
            return
        if block in self._bad_blocks:
            raise self._bad_blocks[block]
        try:
            self._source.read(shard, block, offset, buffer)
        except AccessError as error:
            raise self._bad(block, offset, str(error)) from error

    def _bad(self, block: int, offset: int, problem: str) -> BadBlock:
        row = self.manifest.blocks[block]
        name = self._source.name(int(row["shard"]))
        bad = self._bad_blocks[block] = BadBlock(block, name, int(row["key"]), offset, problem)
        return bad


def starts_of(lengths: npt.NDArray[np.integer]) -> I64:
    """[n + 1] int64: where each of n consecutive pieces begins, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, dtype=np.int64, out=starts[1:])
    return starts
