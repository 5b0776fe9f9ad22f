"""Blocks of a split that are checked against their hashes when they are first read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from data_tools.shard_format import Manifest, Member
from pretrain.data.access.errors import AccessError
from pretrain.data.access.source import Source

U32 = npt.NDArray[np.uint32]


class UnreadableBlock(DataError):
    """A block that cannot be read now; the block may well be sound.

    Attributes:
        block: its number in the block table.
        shard: path or URL of its shard.
        key: its number in the shard.
        offset: byte in the shard.
        problem: what is wrong with it.
    """

    advice = "see to it that the shard can be read, and start again"

    def __init__(self, block: int, shard: str, key: int, offset: int, problem: str) -> None:
        super().__init__(f"shard {shard}, block {key:06d}, byte {offset}: {problem}; {self.advice}")
        self.block, self.shard, self.key, self.offset, self.problem = block, shard, key, offset, problem


class BadBlock(UnreadableBlock):
    """A block that is damaged, for certain; `data.on_bad_block: skip` leaves its samples out."""

    advice = "copy the shard again or rebuild the corpus"


class CheckedBlocks:
    """The shards of a split, block by block; damage is remembered, and a damaged block not read anew.

    Attributes:
        manifest: the split.
        source: where the bytes come from.
        verified: [blocks] bool, whether a block's tokens may be read without `verify`.
        damaged: blocks that are known to be damaged.
    """

    def __init__(self, manifest: Manifest, source: Source, verify: bool) -> None:
        self.manifest, self.source = manifest, source
        checked = not verify or source.verified
        self.verified = np.full(len(manifest.blocks), checked)
        self.damaged: dict[int, BadBlock] = {}
        self._verify_lengths = not checked

    def verify(self, block: int) -> None:
        """Check a block's tokens.

        Raises:
            BadBlock: they do not match their hash.
        """
        member, row = self.manifest.layout(block).tok, self.manifest.blocks[block]
        payload = self._payload(block, member)
        if xxhash.xxh3_64_intdigest(payload) != int(row["xxh3"]):
            if not self.source.again(int(row["shard"])):
                raise self.bad(block, member.offset, "the tokens do not match their hash")
            return self.verify(block)
        self.verified[block] = True

    def lengths(self, block: int) -> tuple[U32, U32]:
        """The content of a block's doc.bin and sent.bin; the second is empty where there are no sentences."""
        layout, row = self.manifest.layout(block), self.manifest.blocks[block]
        documents = self._payload(block, layout.doc)
        sentences = self._payload(block, layout.sent) if layout.sent else bytearray()
        digest = xxhash.xxh3_64_intdigest(documents + sentences) if self._verify_lengths else None
        if digest not in (None, int(row["lengths_xxh3"])):
            if self.source.again(int(row["shard"])):
                return self.lengths(block)
            raise self.bad(block, layout.doc.offset, "the lengths of documents do not match their hash")
        lengths = np.frombuffer(documents, dtype="<u4")
        if int(lengths.sum(dtype=np.int64)) != int(row["tokens"]):
            raise self.bad(block, layout.doc.offset, "document lengths do not add up")
        return lengths, np.frombuffer(sentences, dtype="<u4")

    def _payload(self, block: int, member: Member) -> bytearray:
        payload = bytearray(member.length)
        shard = int(self.manifest.blocks[block]["shard"])
        self.read(shard, block, member.offset, memoryview(payload))
        return payload

    def read(self, shard: int, block: int, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from a byte offset of a shard.

        Raises:
            BadBlock: the block is damaged.
            UnreadableBlock: it cannot be read for another reason.
        """
        if not buffer.nbytes:
            return
        if block in self.damaged:
            raise self.damaged[block]
        try:
            self.source.read(shard, block, offset, buffer)
        except AccessError as error:
            if error.damaged:
                raise self.bad(block, offset, str(error)) from error
            raise UnreadableBlock(block, *self._place(block), offset, str(error)) from error

    def bad(self, block: int, offset: int, problem: str) -> BadBlock:
        """Remember a block as damaged; returns the error to raise."""
        bad = self.damaged[block] = BadBlock(block, *self._place(block), offset, problem)
        self.verified[block] = False
        return bad

    def _place(self, block: int) -> tuple[str, int]:
        """(path or URL of a block's shard, its number in the shard)."""
        row = self.manifest.blocks[block]
        return self.source.name(int(row["shard"])), int(row["key"])
