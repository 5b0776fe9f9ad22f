"""What a reader needs of the place where shards lie, and the reads that all file-like places share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

from pretrain.data.access.errors import AccessError


class Source(Protocol):
    """The bytes of a split's shards.

    Attributes:
        verified: what it gives was checked against the block's hash already.
        remote: reads wait for a network, so it pays to say early what will be wanted.
    """

    verified: bool
    remote: bool

    def read(self, shard: int, block: int, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with a shard's bytes from `offset` on, all of them within one payload of the block.

        Raises:
            AccessError: they cannot be had, also after the attempts that the source makes.
        """

    def gather(
        self, shards: Sequence[int], offsets: Sequence[int], sizes: Sequence[int], buffer: memoryview
    ) -> bool:
        """Fill a buffer with many pieces at once, one behind the other, where that is faster than `read`.

        Returns:
            False where not all of it was read: `read` can, or tells what is wrong.
        """

    def again(self, shard: int) -> bool:
        """What was read of a shard is damaged: whether another copy may be read; the old one is dropped."""

    def want(self, blocks: Iterable[int], lengths: bool = False) -> None:
        """Begin to bring in blocks that will be read soon: their tokens, or their documents' lengths."""

    def name(self, shard: int) -> str:
        """Path or URL of a shard, for messages."""

    def stop(self) -> None:
        """Let every read fail at once, also those that wait, until `close`; called by any thread."""

    def close(self) -> None:
        """Give back descriptors and threads; the source may be used again."""


def fill(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Read exactly a buffer from a file.

    Raises:
        AccessError: the file is shorter, or cannot be read.
    """
    try:
        read = os.preadv(descriptor, [buffer], offset)
        while 0 < read < buffer.nbytes:  # a read may be cut at 2 GiB or by a network file system
            more = os.preadv(descriptor, [buffer.cast("B")[read:]], offset + read)
            read = read + more if more else 0
    except OSError as error:
        raise AccessError(error.strerror or str(error)) from error
    if not read:
        raise AccessError("the file ends too early", damaged=True)
