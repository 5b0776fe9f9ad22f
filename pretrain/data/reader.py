"""Reads blocks of a split straight out of its tar shards by position.

pread, not mmap: a file that shrinks under a map kills the process, a short read is an error with a name.
Nothing here knows the order of samples or what they mean.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from data_tools.shard_format import Manifest, Member
from pretrain.data.philox import I64

MAX_OPEN_SHARDS = 256
"""File descriptors kept; below the usual limit of 1024 for a process."""

U32 = npt.NDArray[np.uint32]
Tokens = npt.NDArray[np.integer]


class BlockReader:
    """Random access to the tokens, documents and sentences of one split. Not thread-safe.

    Attributes:
        manifest: the split.
        token_starts: [blocks + 1] int64, number of the first token of each block in the corpus stream.
    """

    def __init__(self, manifest: Manifest, verify: bool = True) -> None:
        self.manifest = manifest
        self.token_starts: I64 = starts_of(manifest.blocks["tokens"])
        self._verified = np.full(len(manifest.blocks), not verify)
        self._open: OrderedDict[int, int] = OrderedDict()
        weakref.finalize(self, _close_all, self._open)
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
            DataError: a shard is missing, cut short or does not match its hash.
        """
        positions = starts % self.token_starts[-1]
        blocks = np.searchsorted(self.token_starts, positions, side="right") - 1
        inside = positions - self.token_starts[blocks]
        rows = self.manifest.blocks[blocks]
        offsets = rows["offset"].astype(np.int64) + inside * self._itemsize
        columns = (blocks, inside, rows["shard"], offsets, rows["tokens"] - inside)
        places = zip(*(column.tolist() for column in columns), strict=True)
        for (block, at, shard, offset, available), buffer in zip(places, buffers, strict=True):
            if not self._verified[block]:
                self._verify(block)
            if len(buffer) <= available:
                self._pread(shard, block, offset, buffer.data)
            else:
                self._read_across(block, at, buffer)

    def documents(self, block: int) -> U32:
        """[D] tokens of each document of a block, eod included.

        Raises:
            DataError: the shard cannot be read, or the lengths do not add up to the block's tokens.
        """
        member = self.manifest.layout(block).doc
        lengths = self._read_u32(block, member)
        if int(lengths.sum(dtype=np.int64)) != int(self.manifest.blocks[block]["tokens"]):
            raise self._damaged(block, member.offset, "document lengths do not add up")
        return lengths

    def sentences(self, block: int) -> tuple[U32, U32]:
        """([D] sentences of each document, [sum of these] tokens of each sentence) of a block.

        Raises:
            DataError: the corpus has no sentences, the shard cannot be read, or the lengths do not add up.
        """
        member = self.manifest.layout(block).sent
        if member is None:
            raise DataError(
                f"{self.manifest.directory} has no sentence boundaries, which BERT's sentence pairs need; "
                "prepare the corpus with sentences"
            )
        numbers = self._read_u32(block, member)
        documents = self.documents(block)
        counts, lengths = numbers[: len(documents)], numbers[len(documents) :]
        if int(counts.sum(dtype=np.int64)) != len(lengths):
            raise self._damaged(block, member.offset, "sentence counts do not add up")
        ends = starts_of(lengths)[starts_of(counts)]
        if not np.array_equal(np.diff(ends), documents.astype(np.int64) - 1):
            raise self._damaged(block, member.offset, "sentence lengths do not add up to the documents")
        return counts, lengths

    def close(self) -> None:
        """Close every shard. The reader may be used again; it opens them anew."""
        _close_all(self._open)

    def _read_across(self, block: int, inside: int, buffer: Tokens) -> None:
        """Fill a buffer from token `inside` of a block on, over as many blocks as it takes."""
        done = 0
        while done < len(buffer):
            if not self._verified[block]:
                self._verify(block)
            row = self.manifest.blocks[block]
            count = min(int(row["tokens"]) - inside, len(buffer) - done)
            offset = int(row["offset"]) + inside * self._itemsize
            self._pread(int(row["shard"]), block, offset, buffer[done : done + count].data)
            done, inside, block = done + count, 0, (block + 1) % len(self.manifest.blocks)

    def _verify(self, block: int) -> None:
        member = self.manifest.layout(block).tok
        payload = bytearray(member.length)
        row = self.manifest.blocks[block]
        self._pread(int(row["shard"]), block, member.offset, memoryview(payload))
        if xxhash.xxh3_64_intdigest(payload) != int(row["xxh3"]):
            raise self._damaged(block, member.offset, "the tokens do not match their hash")
        self._verified[block] = True

    def _read_u32(self, block: int, member: Member) -> U32:
        numbers = np.empty(member.length // 4, dtype="<u4")
        self._pread(int(self.manifest.blocks[block]["shard"]), block, member.offset, numbers.data)
        return numbers

    def _pread(self, shard: int, block: int, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from a byte offset of a shard."""
        if not buffer.nbytes:
            return
        try:
            read = os.preadv(self._descriptor(shard), [buffer], offset)
            while 0 < read < buffer.nbytes:  # a read may be cut at 2 GiB or by a network file system
                more = os.preadv(self._descriptor(shard), [buffer.cast("B")[read:]], offset + read)
                read = read + more if more else 0
        except OSError as error:
            raise self._damaged(block, offset, error.strerror or str(error)) from error
        if not read:
            raise self._damaged(block, offset, "the file ends too early")

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.get(shard)
        if descriptor is None:
            if len(self._open) >= MAX_OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            descriptor = os.open(self.manifest.shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
            self._open[shard] = descriptor
        else:
            self._open.move_to_end(shard)
        return descriptor

    def _damaged(self, block: int, offset: int, problem: str) -> DataError:
        row = self.manifest.blocks[block]
        path: Path = self.manifest.shard_path(int(row["shard"]))
        return DataError(
            f"shard {path}, block {int(row['key']):06d}, byte {offset}: {problem}; copy the shard again or "
            "rebuild the corpus"
        )


def _close_all(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def starts_of(lengths: npt.NDArray[np.integer]) -> I64:
    """[n + 1] int64: where each of n consecutive pieces begins, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, dtype=np.int64, out=starts[1:])
    return starts
