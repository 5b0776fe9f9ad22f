"""BERT samples: sentence pairs for masked language modelling and a decision about the pair.

A is the first part of a run of sentences. For half of the samples B is the rest of the run. For the other
half B is text from *another* document (next-sentence prediction; Devlin et al., 2019), or the two are swapped
(sentence-order prediction; Lan et al., 2020). Which half, where A ends and who the partner is changes with
the epoch, and depends on nothing but the seed, the epoch and the sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pretrain.data.index_files import damaged
from pretrain.data.objectives import PairBatch, Vocabulary
from pretrain.data.pair_index import SPECIAL_TOKENS, PairIndex
from pretrain.data.philox import I64, SampleIds, draw_words
from pretrain.data.sentences import SentenceTable, SentenceTables

PURPOSE_PAIR = 3  # objectives.py has 0..2
DRAWS = 8


class Span(NamedTuple):
    """Consecutive tokens of a block; `start` is counted in the block."""

    block: int
    start: int
    length: int


class PairPlan(NamedTuple):
    """What a sample is made of, before any token is read; `is_random` where B is not what follows A."""

    a: Span
    b: Span
    is_random: bool


class BertSamples:
    """The sentence pairs of one corpus.

    Attributes:
        count: samples in an epoch.
    """

    def __init__(
        self,
        tables: SentenceTables,
        index: PairIndex,
        vocabulary: Vocabulary,
        seq_length: int,
        swapped: bool = False,
    ) -> None:
        """Set up.

        Args:
            tables: sentences of the corpus.
            index: its runs of sentences.
            vocabulary: the special ids.
            seq_length: S, tokens in a sample.
            swapped: half of the pairs are swapped instead of taken from two documents.
        """
        self.count, self._swapped = len(index.pairs), swapped
        self._tables, self._index, self._vocabulary, self._seq_length = tables, index, vocabulary, seq_length

    def read(self, ids: SampleIds) -> PairBatch:
        """Read sentence pairs.

        Args:
            ids: B samples of this corpus.

        Returns:
            B samples of seq_length tokens.

        Raises:
            DataError: a shard or the index is damaged.
        """
        plans = self.plan(ids)
        reader = self._tables.reader
        spans = [span for plan in plans for span in (plan.a, plan.b)]
        starts = np.array([reader.token_starts[span.block] + span.start for span in spans], dtype=np.int64)
        lengths = np.array([span.length for span in spans], dtype=np.int64)
        text = reader.read(starts, lengths)
        return self._lay_out(text, lengths.reshape(-1, 2), np.array([plan.is_random for plan in plans]))

    def blank(self) -> PairBatch:
        """What `read` would give for one sample without text, in place of one that cannot be read."""
        tokens = np.full((1, self._seq_length), self._vocabulary.pad_id, dtype=np.int64)
        tokens[:, 0] = self._vocabulary.cls_id
        return PairBatch(
            tokens, np.zeros_like(tokens), np.arange(self._seq_length)[None] < 1, np.zeros(1, int)
        )

    def want(self, ids: SampleIds) -> None:
        """Say which samples will be read soon."""
        blocks = np.searchsorted(self._index.starts, ids.sample, side="right") - 1
        reader = self._tables.reader
        reader.want(reader.token_starts[blocks], lengths=True)

    def parts(self, ids: SampleIds) -> list[list[tuple[int, int]]]:
        """(first token in the corpus stream, tokens) of the one range of A and of B of one sample."""
        (plan,), starts = self.plan(ids), self._tables.reader.token_starts
        return [[(int(starts[span.block]) + span.start, span.length)] for span in (plan.a, plan.b)]

    def plan(self, ids: SampleIds) -> list[PairPlan]:
        """Choose the two spans of each sample; reads sentence tables, no tokens."""
        blocks = np.searchsorted(self._index.starts, ids.sample, side="right") - 1
        draws = draw_words(ids, PURPOSE_PAIR, DRAWS)
        runs = self._index.pairs[ids.sample]
        return [
            self._plan_one(*arguments)
            for arguments in zip(blocks.tolist(), runs.tolist(), draws.tolist(), strict=True)
        ]

    def _plan_one(self, block: int, run: tuple[int, int, int], draws: list[int]) -> PairPlan:
        first, sentences, target = run
        table = self._tables.table(block)
        if sentences < 2 or first + sentences > len(table.starts):
            raise damaged(self._index.path, "a run of sentences is not in its block")
        middle = first + 1 + _below(draws[0], sentences - 1)
        a = _span(block, table, first, middle)
        is_random = draws[1] >= 1 << 31
        if is_random and not self._swapped:
            b = self._partner(block, first, max(target - a.length, 1), draws)
        else:
            b = _span(block, table, middle, first + sentences)
        longest = self._seq_length - SPECIAL_TOKENS
        cut_a, cut_b = cut_lengths(a.length, b.length, longest)
        a, b = _cut(a, cut_a, draws[5]), _cut(b, cut_b, draws[6])
        return PairPlan(b, a, True) if is_random and self._swapped else PairPlan(a, b, is_random)

    def _partner(self, block: int, sentence: int, target: int, draws: list[int]) -> Span:
        """About `target` tokens from a random place in another document, of the same block if it has one."""
        table = self._tables.table(block)
        if table.documents >= 2:
            document = _below(draws[2], table.documents - 1)
            document += document >= int(np.searchsorted(table.first, sentence, side="right")) - 1
        else:
            block, table = self._other_block(block, draws[7])
            document = _below(draws[2], table.documents)
        begin, end = int(table.first[document]), int(table.first[document + 1])
        begin += _below(draws[3], end - begin)
        reached = int(table.starts[begin]) + target
        stop = begin + 1 + int(np.searchsorted(table.ends[begin:end], reached))
        return _span(block, table, begin, min(stop, end))

    def _other_block(self, block: int, draw: int) -> tuple[int, SentenceTable]:
        """A block that is not this one and has text; the index made sure that there is one."""
        blocks = len(self._index.starts) - 1
        other = (block + 1 + _below(draw, blocks - 1)) % blocks
        while other == block or not self._tables.table(other).documents:
            other = (other + 1) % blocks
        return other, self._tables.table(other)

    def _lay_out(
        self, text: npt.NDArray[np.integer], lengths: I64, random: npt.NDArray[np.bool_]
    ) -> PairBatch:
        """Put the texts between the special tokens.

        Args:
            text: all A and B of the batch in order.
            lengths: [B, 2] tokens of A and of B.
            random: [B] whether B is from another document.
        """
        position = np.arange(self._seq_length)
        a_end = 1 + lengths[:, :1]  # where the first [SEP] stands
        b_end = a_end + 1 + lengths[:, 1:]
        is_text = ((position >= 1) & (position < a_end)) | ((position > a_end) & (position < b_end))
        tokens = np.full(is_text.shape, self._vocabulary.pad_id, dtype=np.int64)
        tokens[is_text] = text
        tokens[:, 0] = self._vocabulary.cls_id
        np.put_along_axis(tokens, np.hstack([a_end, b_end]), self._vocabulary.sep_id, axis=1)
        return PairBatch(
            tokens=tokens,
            token_types=((position > a_end) & (position <= b_end)).astype(np.int64),
            padding_mask=position <= b_end,
            next_sentence_labels=random.astype(np.int64),
        )


def cut_lengths(a: int, b: int, longest: int) -> tuple[int, int]:
    """Tokens to take away from A and from B: one by one from the longer, on a tie from B, until both fit."""
    excess = max(a + b - longest, 0)
    level = min(excess, abs(a - b))
    cut_a, cut_b = (level, 0) if a > b else (0, level)
    rest = excess - level
    return cut_a + rest // 2, cut_b + rest - rest // 2


def _cut(span: Span, tokens: int, draw: int) -> Span:
    """Take tokens away at the two ends, split between them at random."""
    return Span(span.block, span.start + _below(draw, tokens + 1), span.length - tokens)


def _span(block: int, table: SentenceTable, first: int, stop: int) -> Span:
    """The tokens of sentences first..stop-1, which lie in one document."""
    start = int(table.starts[first])
    return Span(block, start, int(table.ends[stop - 1]) - start)


def _below(draw: int, bound: int) -> int:
    """A 32-bit draw as an integer in [0, bound)."""
    return (draw * bound) >> 32
