"""GPT samples: the corpus as one long row of tokens, cut into equal pieces."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from pretrain.data.order import subkeys
from pretrain.data.philox import I64, SampleIds
from pretrain.data.reader import BlockReader


class GptSamples:
    """Sample i of an epoch is tokens [shift + i * S, shift + i * S + S] of the corpus stream.

    The stream is a ring, so `count` is the same in every epoch whatever its shift, and an epoch leaves out
    fewer than S tokens, each time others. No index is stored: a sample's place is arithmetic.

    Attributes:
        count: samples in an epoch.
    """

    def __init__(self, reader: BlockReader, seq_length: int, shift_key: np.uint64 | None) -> None:
        """Cut a corpus.

        Args:
            reader: the corpus.
            seq_length: S, tokens in a sample; one more is read for the last label.
            shift_key: each epoch is cut at other places, by this key; None cuts every epoch at token 0.

        Raises:
            DataError: the corpus has too few tokens for one sample.
        """
        tokens = int(reader.token_starts[-1])
        if tokens <= seq_length:
            raise DataError(
                f"{reader.manifest.directory} has {tokens} tokens, too few for one sample of "
                f"batch.seq_length: {seq_length} + 1; add documents or lower it"
            )
        self.count = tokens // seq_length
        self._reader, self._seq_length, self._shift_key = reader, seq_length, shift_key

    def starts(self, epoch: I64, sample: I64) -> I64:
        """[n] first token of each sample, in the ring."""
        first = sample * self._seq_length
        if self._shift_key is None:
            return first
        shift = subkeys(self._shift_key, epoch) % np.uint64(self._seq_length)
        return first + shift.astype(np.int64)

    def read(self, ids: SampleIds) -> tuple[npt.NDArray[np.integer]]:
        """Read samples.

        Args:
            ids: B samples of this corpus.

        Returns:
            One array, [B, S + 1] token ids in the type that the shards store.

        Raises:
            DataError: a shard is missing or damaged.
        """
        return (self._reader.read_rows(self.starts(ids.epoch, ids.sample), self._seq_length + 1),)
