"""GPT samples: the corpus as one long row of tokens, cut into equal pieces (see `token_order`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from pretrain.data.objectives import DocumentRows
from pretrain.data.philox import I64
from pretrain.data.reader import BlockReader
from pretrain.data.token_order import Spans

Rows = tuple[npt.NDArray[np.integer]] | DocumentRows


class GptSamples:
    """Reads pieces of a corpus."""

    def __init__(self, reader: BlockReader, seq_length: int, documents: bool = False) -> None:
        """Cut a corpus.

        Args:
            reader: the corpus.
            seq_length: S, tokens in a sample; one more is read for the last label.
            documents: find out where documents begin.

        Raises:
            DataError: the corpus has too few tokens for one sample.
        """
        tokens = int(reader.token_starts[-1])
        if tokens <= seq_length:
            raise DataError(
                f"{reader.manifest.origin} has {tokens} tokens, too few for one sample of "
                f"batch.seq_length: {seq_length} + 1; add documents or lower it"
            )
        self._reader, self._seq_length, self._documents = reader, seq_length, documents

    def blank(self) -> Rows:
        """What `read` would give for one sample of token 0, in place of one that cannot be read."""
        rows = np.zeros((1, self._seq_length + 1), dtype=self._reader.manifest.token_dtype)
        return self._boundaries(rows, None) if self._documents else (rows,)

    def want(self, spans: Spans) -> None:
        """Say which samples will be read soon."""
        self._reader.want(np.concatenate([spans.start, spans.start + spans.length]))

    def read(self, spans: Spans) -> Rows:
        """Read samples.

        Args:
            spans: where B samples of this corpus lie, S tokens each.

        Returns:
            One array, [B, S + 1] token ids in the type that the shards store; the last token is the one that
            follows the last span. Or, with `documents`, rows that know where documents begin.

        Raises:
            DataError: a shard is missing or damaged.
        """
        lengths: I64 | int = self._seq_length + 1
        if not spans.one_each:
            lengths = spans.length + (self._ends(spans) == self._seq_length)
        rows = self._reader.read(spans.start, lengths).reshape(-1, self._seq_length + 1)
        if not self._documents:
            return (rows,)
        return self._boundaries(rows, None if spans.one_each else spans)

    def _ends(self, spans: Spans) -> I64:
        """[n] where each span ends in its sample."""
        return np.cumsum(spans.length) - spans.row * self._seq_length

    def _boundaries(self, rows: npt.NDArray[np.integer], spans: Spans | None) -> DocumentRows:
        """Mark in [B, S + 1] tokens where documents end, and where a range does not continue the last one."""
        begins = np.empty(rows.shape, dtype=np.bool_)
        begins[:, 0] = True
        np.equal(rows[:, :-1], self._reader.manifest.eod_id, out=begins[:, 1:])
        if spans is not None:
            ends = self._ends(spans)
            apart = (spans.start + spans.length)[:-1] != spans.start[1:]
            joined = np.flatnonzero(apart & (ends[:-1] < self._seq_length))
            begins[spans.row[joined], ends[joined]] = True
        return DocumentRows(rows[:, :-1], rows[:, 1:], begins[:, :-1], ~begins[:, 1:])
