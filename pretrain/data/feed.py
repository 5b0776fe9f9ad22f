"""All corpora of a split as one endless, numbered sequence of samples.

A `Feed` turns global sample numbers into micro-batches and keeps no position: whoever asks, in whatever
order, gets the same samples for the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pretrain.data.bert_samples import BertSamples
from pretrain.data.blocks import BadBlock
from pretrain.data.gpt_samples import GptSamples
from pretrain.data.mixture import Mixture
from pretrain.data.objectives import MicroBatch
from pretrain.data.packing_index import PackedSamples
from pretrain.data.phases import CorpusShare, Order, Phase, check_same_corpus
from pretrain.data.philox import I64, SampleIds
from pretrain.data.reader import BlockReader
from pretrain.data.segments import SegmentSamples
from pretrain.data.skip import SkipLog, SkippedSample, leave_out
from pretrain.data.token_order import Spans, TokenOrder

Split = Literal["train", "validation"]
Arrays = Sequence[npt.NDArray[Any]]
Samples = GptSamples | PackedSamples | BertSamples | SegmentSamples


@dataclass(frozen=True, slots=True)
class Corpus:
    """One open corpus.

    Attributes:
        reader: its shards.
        samples: what is cut from them.
        key: `derive_key` of the seed and the corpus.
        share: name, size and weight; its start is that of the phase.
        order: which sample comes when.
    """

    reader: BlockReader
    samples: Samples
    key: np.uint64
    share: CorpusShare
    order: Order


@dataclass(frozen=True, slots=True)
class Located:
    """Where global samples come from.

    Attributes:
        corpus: [n] index of the corpus.
        ids: the n samples within their corpora.
        numbers: [n] their global numbers.
        spans: where they lie in their corpora, for samples that are cut from a row of tokens.
    """

    corpus: I64
    ids: SampleIds
    numbers: I64
    spans: Spans | None

    def take(self, begin: int, end: int) -> Located:
        """Samples begin..end-1."""
        rows = slice(begin, end)
        spans = self.spans.take(begin, end) if self.spans else None
        return Located(self.corpus[rows], self.ids.take(rows), self.numbers[rows], spans)

    def of_corpus(self, index: int) -> Located:
        """The samples of one corpus."""
        mine = self.corpus == index
        spans = self.spans.pick(mine) if self.spans else None
        return Located(self.corpus[mine], self.ids.take(np.flatnonzero(mine)), self.numbers[mine], spans)


@dataclass(frozen=True, slots=True)
class Feed:
    """The samples of a split in one phase.

    Attributes:
        corpora: what is mixed.
        mixture: the shares.
        objective: from the arrays that samples are read as to a micro-batch.
        seed: of the order.
        shuffle: False keeps storage order in every epoch.
        phase: where the numbers of samples begin, and where in the corpora.
        skips: takes down samples that cannot be read; None makes such a sample an error.
    """

    corpora: tuple[Corpus, ...]
    mixture: Mixture
    objective: Callable[[Arrays, SampleIds], MicroBatch]
    seed: int
    shuffle: bool
    phase: Phase
    skips: SkipLog | None = None

    @property
    def sizes(self) -> I64:
        """[C] samples in an epoch of each corpus."""
        return np.array([corpus.order.epoch_samples for corpus in self.corpora], dtype=np.int64)

    def at(self, phase: Phase) -> Feed:
        """The same open corpora in another phase, which has them in an order of its own.

        Raises:
            DataError: the phase has another corpus under the name of one of these.
        """
        by_name = {corpus.share.name: corpus for corpus in self.corpora}
        corpora = []
        for share in phase.corpora:
            corpus = by_name[share.name]
            check_same_corpus(share, corpus.share, same_length=True)
            order = share.order(phase.seq_length, corpus.key if self.shuffle else None)
            corpora.append(replace(corpus, share=share, order=order))
        return replace(self, corpora=tuple(corpora), mixture=phase.mixture(self.seed), phase=phase)

    def locate(self, numbers: I64) -> Located:
        """Find global samples; pure arithmetic, the same cost at any number.

        Args:
            numbers: [n] global sample numbers of this phase, counted from the start of training.
        """
        which, within = self.mixture.locate(numbers - self.phase.first_sample)
        epoch, sample = np.empty_like(within), np.empty_like(within)
        found: list[Spans] = []
        for index, corpus in enumerate(self.corpora):
            rows = np.flatnonzero(which == index)
            epoch[rows], sample[rows] = corpus.order.locate(within[rows])
            if rows.size and isinstance(corpus.order, TokenOrder):
                spans = corpus.order.spans(epoch[rows], sample[rows])
                found.append(spans._replace(row=rows[spans.row]))
        key = np.array([corpus.key for corpus in self.corpora])[which]
        return Located(which, SampleIds(key, epoch, sample), numbers, _in_order(found))

    def micro_batches(self, located: Located, size: int) -> list[MicroBatch]:
        """Read samples, all at once, and make the model's inputs of them, `size` samples each.

        Raises:
            DataError: a shard is missing or damaged, and damaged blocks are not skipped.
        """
        skipped = None
        try:
            arrays = self._read(located)
        except BadBlock:
            if self.skips is None:
                raise
            arrays, skipped = self._read_around(located, self.skips)
        batches = []
        for begin in range(0, len(located.numbers), size):
            rows = slice(begin, begin + size)
            batch = self.objective([array[rows] for array in arrays], located.ids.take(rows))
            batches.append(batch if skipped is None else leave_out(batch, skipped[rows]))
        return batches

    def want(self, located: Located) -> None:
        """Say which samples will be read soon; only corpora behind a network act on it."""
        if not any(corpus.reader.remote for corpus in self.corpora):
            return
        for index in np.unique(located.corpus).tolist():
            samples, mine = self.corpora[index].samples, located.of_corpus(index)
            if not isinstance(samples, GptSamples):
                samples.want(mine.ids)
            elif mine.spans is not None:
                samples.want(mine.spans)

    def _read(self, located: Located) -> Arrays:
        """The arrays of samples of any corpora, one row each."""
        sources = np.unique(located.corpus).tolist() if len(self.corpora) > 1 else [0]
        if len(sources) == 1:
            return _read(self.corpora[sources[0]], located)
        merged: list[npt.NDArray[Any]] = []
        for index in sources:
            rows = np.flatnonzero(located.corpus == index)
            parts = _read(self.corpora[index], located.of_corpus(index))
            merged = merged or [np.empty((len(located.corpus), *p.shape[1:]), p.dtype) for p in parts]
            for whole, part in zip(merged, parts, strict=True):
                whole[rows] = part
        return merged

    def _read_around(self, located: Located, skips: SkipLog) -> tuple[Arrays, npt.NDArray[np.bool_]]:
        """([B] rows with blanks for what cannot be read, [B] which those are)."""
        skipped = np.zeros(len(located.corpus), dtype=np.bool_)
        rows: list[Arrays] = []
        for row, corpus in enumerate(located.corpus.tolist()):
            try:
                rows.append(self._read(located.take(row, row + 1)))
            except BadBlock as bad:
                name, number = self.corpora[corpus].share.name, int(located.numbers[row])
                skips.add(SkippedSample(number, name, bad.shard, bad.key, bad.offset, bad.problem))
                rows.append(self.corpora[corpus].samples.blank())
                skipped[row] = True
        return [np.concatenate(column) for column in zip(*rows, strict=True)], skipped

    def passes(self, consumed_samples: int) -> dict[str, float]:
        """Passes over each corpus of the phase after so many samples of the training, by name."""
        read = self.mixture.consumed(consumed_samples - self.phase.first_sample).tolist()
        return {
            corpus.share.name: corpus.order.passes(n) for corpus, n in zip(self.corpora, read, strict=True)
        }

    def stop(self) -> None:
        """Let reads in other threads fail at once, until `close`."""
        for corpus in self.corpora:
            corpus.reader.stop()

    def close(self) -> None:
        """Close all shards."""
        for corpus in self.corpora:
            corpus.reader.close()


def _read(corpus: Corpus, located: Located) -> Arrays:
    if not isinstance(corpus.samples, GptSamples):
        return corpus.samples.read(located.ids)
    assert located.spans is not None
    return corpus.samples.read(located.spans)


def _in_order(found: list[Spans]) -> Spans | None:
    """The spans of all corpora by row."""
    if len(found) < 2:
        return found[0] if found else None
    merged = [np.concatenate(column) for column in zip(*found, strict=True)]
    order = np.argsort(merged[0], kind="stable")
    return Spans(*(column[order] for column in merged))
