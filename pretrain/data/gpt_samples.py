"""GPT samples: the corpus as one long row of tokens, cut into equal pieces (see `token_order`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from pretrain.data.reader import BlockReader
from pretrain.data.token_order import Spans


class GptSamples:
    """Reads pieces of a corpus."""

    def __init__(self, reader: BlockReader, seq_length: int) -> None:
        """Cut a corpus.

        Args:
            reader: the corpus.
            seq_length: S, tokens in a sample; one more is read for the last label.

        Raises:
            DataError: the corpus has too few tokens for one sample.
        """
        tokens = int(reader.token_starts[-1])
        if tokens <= seq_length:
            raise DataError(
                f"{reader.manifest.origin} has {tokens} tokens, too few for one sample of "
                f"batch.seq_length: {seq_length} + 1; add documents or lower it"
            )
        self._reader, self._seq_length = reader, seq_length

    def blank(self) -> tuple[npt.NDArray[np.integer]]:
        """What `read` would give for one sample of token 0, in place of one that cannot be read."""
        return (np.zeros((1, self._seq_length + 1), dtype=self._reader.manifest.token_dtype),)

    def want(self, spans: Spans) -> None:
        """Say which samples will be read soon."""
        self._reader.want(np.concatenate([spans.start, spans.start + spans.length]))

    def read(self, spans: Spans) -> tuple[npt.NDArray[np.integer]]:
        """Read samples.

        Args:
            spans: where B samples of this corpus lie, S tokens each.

        Returns:
            One array, [B, S + 1] token ids in the type that the shards store; the last token is the one that
            follows the last span.

        Raises:
            DataError: a shard is missing or damaged.
        """
        if not len(spans.row) or np.all(np.diff(spans.row) == 1):  # one span each, as nearly always
            return (self._reader.read_rows(spans.start, self._seq_length + 1),)
        rows = np.empty(
            (int(spans.row[-1]) + 1, self._seq_length + 1), dtype=self._reader.manifest.token_dtype
        )
        ends = np.cumsum(spans.length) - spans.row * self._seq_length
        buffers = []
        for row, end, length in zip(spans.row.tolist(), ends.tolist(), spans.length.tolist(), strict=True):
            buffers.append(rows[row, end - length : end + (end == self._seq_length)])
        self._reader.read_into(spans.start, buffers)
        return (rows,)
