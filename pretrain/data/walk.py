"""Going through the order of a training itself: what each epoch of each corpus gave, and what it gave twice.

The memory that this takes does not grow with the samples: ranges that meet become one range. As samples are
shuffled within windows, what was read of an epoch soon is one range for each group of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pretrain.data.order import WINDOW_GROUPS
from pretrain.data.phases import CorpusShare, Phase
from pretrain.data.philox import I64, derive_key
from pretrain.data.state import StreamState
from pretrain.data.token_order import TokenOrder, TokenStart, group_tokens

CHUNK_SAMPLES = 1 << 18
"""Samples gone through at once: some 50 MiB of arrays."""


class Coverage:
    """What was read of one epoch of a corpus.

    Attributes:
        size, unit: of the corpus.
        read: tokens or samples read.
        twice: ranges that lie in earlier ones in part.
    """

    def __init__(self, share: CorpusShare) -> None:
        self.size, self.unit = share.size, share.unit
        self.read = self.twice = 0
        self._begin = self._end = np.zeros(0, dtype=np.int64)

    def add(self, start: I64, length: I64) -> None:
        """Read ranges of [n] first units and [n] numbers of units."""
        begin, end = np.concatenate([self._begin, start]), np.concatenate([self._end, start + length])
        order = np.argsort(begin, kind="stable")
        begin, end = begin[order], np.maximum.accumulate(end[order])
        self.read += int(length.sum())
        self.twice += int((begin[1:] < end[:-1]).sum())
        first = np.append(True, begin[1:] > end[:-1])
        self._begin, self._end = begin[first], end[np.append(first[1:], True)]


def walk(state: StreamState) -> tuple[list[str], list[str]]:
    """Go through all samples of a training in their order.

    Args:
        state: at the end of what is to be walked.

    Returns:
        Facts and problems: sentences about what each epoch of each corpus gave.
    """
    found: dict[tuple[str, int], Coverage] = {}
    allowed: Counter[tuple[str, int]] = Counter()
    ends = [*(phase.first_sample for phase in state.phases[1:]), state.consumed_samples]
    for phase, end in zip(state.phases, ends, strict=True):
        read = phase.mixture(state.seed).consumed(end - phase.first_sample).tolist()
        for share, count in zip(phase.corpora, read, strict=True):
            epochs = set()
            for epoch, start, length in _ranges(share, phase.seq_length, count, state.seed):
                found.setdefault((share.name, epoch), Coverage(share)).add(start, length)
                epochs.add(epoch)
            for epoch in epochs:
                allowed[share.name, epoch] += _left_out(share, phase.seq_length)
            if _cuts_epoch(state, phase, share):
                allowed[share.name, share.start.epoch - 1] = share.size
    facts, problems = [], []
    for (name, epoch), one in sorted(found.items()):
        facts.append(f"corpus {name}, epoch {epoch}: {one.read} of {one.size} {one.unit}")
        if one.twice:
            problems.append(f"corpus {name}, epoch {epoch}: {one.twice} ranges of {one.unit} were read twice")
        if (name, epoch + 1) in found and one.size - one.read > allowed[name, epoch]:
            problems.append(f"corpus {name}, epoch {epoch}: {one.size - one.read} {one.unit} were skipped")
    return facts, problems


def _ranges(share: CorpusShare, seq_length: int, samples: int, seed: int) -> Iterator[tuple[int, I64, I64]]:
    """(epoch, [n] first unit, [n] units) of the ranges read in the first samples of a phase, by chunk."""
    order = share.order(seq_length, derive_key(seed, "corpus", share.name))
    for first in range(0, samples, CHUNK_SAMPLES):
        epoch, start = order.locate(np.arange(first, min(samples, first + CHUNK_SAMPLES)))
        length = np.ones_like(start)
        if isinstance(order, TokenOrder):
            spans = order.spans(epoch, start)
            epoch, start, length = epoch[spans.row], spans.start, spans.length
        for one in np.unique(epoch).tolist():
            mine = epoch == one
            yield one, start[mine], length[mine]


def _left_out(share: CorpusShare, seq_length: int) -> int:
    """What a phase leaves out of an epoch: under seq_length tokens of each window and each rest."""
    if not isinstance(share.start, TokenStart):
        return 0
    windows = -(-share.size // (group_tokens(seq_length) * WINDOW_GROUPS))
    return (windows + len(share.start.stretches or ())) * seq_length


def _cuts_epoch(state: StreamState, phase: Phase, share: CorpusShare) -> bool:
    """Whether a phase ended an epoch of a corpus early, as another seq_length may have to."""
    start = share.start
    if not start.epoch or start.done or (isinstance(start, TokenStart) and start.stretches is not None):
        return False
    earlier = [one for one in state.phases if one.first_sample < phase.first_sample]
    used = [one.seq_length for one in earlier if any(other.name == share.name for other in one.corpora)]
    return bool(used) and used[-1] != phase.seq_length
