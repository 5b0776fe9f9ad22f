"""The order of GPT samples: an epoch's tokens, cut into pieces that come in shuffled order.

What is shuffled are spans of tokens, not numbered samples, so seq_length may change in the middle of an
epoch: what was read stays read, the rest is cut anew. All of it is arithmetic; nothing is stored.

An epoch is the ring of the corpus' tokens, rotated by an amount of its own and divided into groups of
`GROUP_TOKENS`. The groups are permuted; `WINDOW_GROUPS` consecutive ones are a window. A window is read as
one row of tokens, cut into pieces of seq_length, and its pieces come in permuted order. Where seq_length is
a power of two no piece lies in two groups. Fewer than seq_length tokens of each window are left out.

A window that was partly read when seq_length changed leaves a `Rest`: its unread pieces, in their permuted
order, are again one row that is cut at the new length. It comes at the end of the epoch, after the windows
that were not begun. Samples from a rest may join pieces that were no neighbours, as they join documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pretrain.data.order import WINDOW_GROUPS, permute, subkeys
from pretrain.data.philox import I64, U64
from pretrain.data.stretches import Rest, Ring, Stretch, Windows, unread_after

GROUP_TOKENS = 1 << 17
"""256 KiB of 16-bit tokens: reads of this size reach about 60 % of a disk's sequential speed."""


class Spans(NamedTuple):
    """Ranges of the corpus stream.

    Attributes:
        row: [n] ascending, which of the asked samples a range belongs to.
        start: [n] its first token in the corpus stream.
        length: [n] its tokens.
    """

    row: I64
    start: I64
    length: I64

    @property
    def one_each(self) -> bool:
        """Whether every sample is one range, as nearly always."""
        return not len(self.row) or int(self.row[-1]) + 1 == len(self.row)

    def take(self, begin: int, end: int) -> Spans:
        """The spans of samples begin..end-1, which are then counted from 0."""
        first, stop = (begin, end) if self.one_each else np.searchsorted(self.row, (begin, end))
        return Spans(self.row[first:stop] - begin, self.start[first:stop], self.length[first:stop])

    def pick(self, chosen: npt.NDArray[np.bool_]) -> Spans:
        """The spans of the samples that [B] `chosen` marks, which are then counted from 0."""
        mine = chosen[self.row]
        row = (np.cumsum(chosen) - 1)[self.row[mine]]
        return Spans(row, self.start[mine], self.length[mine])


@dataclass(frozen=True, slots=True)
class TokenStart:
    """Where a phase begins in a corpus.

    Attributes:
        epoch: passes before this one.
        stretches: what the phase finds of this epoch; None is all of it.
        done: samples of `stretches` that were read already.
    """

    epoch: int = 0
    stretches: tuple[Stretch, ...] | None = None
    done: int = 0


def group_tokens(seq_length: int) -> int:
    """Tokens in a group: `GROUP_TOKENS`, or the power of two that holds a longer sample."""
    return max(GROUP_TOKENS, 1 << (seq_length - 1).bit_length())


class TokenOrder:
    """Where each sample of a corpus lies.

    Attributes:
        tokens: of the corpus, T.
        seq_length: S.
        epoch_samples: samples in a whole epoch.
    """

    def __init__(
        self, tokens: int, seq_length: int, key: np.uint64 | None, start: TokenStart | None = None
    ) -> None:
        """Set up the arithmetic.

        Args:
            tokens: T, at least seq_length.
            seq_length: S.
            key: `derive_key` of the seed and the corpus; None keeps storage order in every epoch.
            start: where the numbers of `locate` begin.
        """
        self.tokens, self.seq_length, self._key = tokens, seq_length, key
        group = group_tokens(seq_length)
        self._ring = Ring(tokens, group, group * WINDOW_GROUPS)
        self._whole = (Windows(0, -(-tokens // self._ring.window)),)
        self.epoch_samples = self._samples(self._whole)
        self.start = start or TokenStart()
        self._first = self._whole if self.start.stretches is None else self.start.stretches

    def locate(self, number: I64) -> tuple[I64, I64]:
        """([n] epoch, [n] position in the order of that epoch) of samples counted from the start."""
        first = self._samples(self._first)
        position = number + self.start.done
        later = position >= first
        epoch, within = np.divmod(position - first, self.epoch_samples)
        begun = self.start.epoch
        return np.where(later, begun + 1 + epoch, begun), np.where(later, within, position)

    def passes(self, number: int) -> float:
        """Passes over the corpus after `number` samples from the start."""
        epoch, position = (int(array[0]) for array in self.locate(np.array([number])))
        if epoch == self.start.epoch:
            left = self._samples(self._first) - position
            return epoch + 1 - min(1.0, left / self.epoch_samples)
        return epoch + position / self.epoch_samples

    def cursor(self, number: int, seq_length: int) -> TokenStart:
        """The start of a phase with `seq_length` after `number` samples of this one.

        Where the group size differs (seq_length over `GROUP_TOKENS`) the rest of the epoch is left out.
        """
        epoch, done = (int(array[0]) for array in self.locate(np.array([number])))
        stretches = self._first if epoch == self.start.epoch else self._whole
        begun = done or stretches != self._whole  # without done: an earlier phase began it
        if begun and group_tokens(seq_length) != self._ring.group:
            return TokenStart(epoch + 1)
        if done and seq_length != self.seq_length:
            return TokenStart(epoch, unread_after(self._ring, stretches, self.seq_length, done))
        return TokenStart(epoch, None if stretches == self._whole else stretches, done)

    def _samples(self, stretches: Sequence[Stretch]) -> int:
        return sum(self._ring.samples(stretch, self.seq_length) for stretch in stretches)

    def spans(self, epoch: I64, position: I64) -> Spans:
        """Where samples lie; positions as `locate` gives them. A sample has one span, rarely more."""
        rows, found = np.arange(len(position)), []
        for current in np.unique(epoch).tolist():
            key = None if self._key is None else subkeys(self._key, np.array([2 * current]))
            stretches = self._first if current == self.start.epoch else self._whole
            begin = 0
            for stretch in stretches:
                end = begin + self._ring.samples(stretch, self.seq_length)
                mine = rows[(epoch == current) & (position >= begin) & (position < end)]
                if mine.size:
                    found += self._stretch_spans(stretch, mine, position[mine] - begin, current, key)
                begin = end
        merged = [np.concatenate(column) for column in zip(*found, strict=True)]
        order = np.argsort(merged[0], kind="stable")
        return Spans(*(column[order] for column in merged))

    def _stretch_spans(
        self, stretch: Stretch, row: I64, position: I64, epoch: int, key: U64 | None
    ) -> list[Spans]:
        """Spans of the pieces at positions of one stretch, split wherever a row of tokens is no range."""
        offset = self._piece_offset(stretch, position, self.seq_length, key)
        left = np.full(len(row), self.seq_length)
        found = []
        while row.size:
            start, run = self._place(stretch, offset, epoch, key)
            length = np.minimum(run, left)
            found.append(Spans(row, start, length))
            offset, left = offset + length, left - length
            more = left > 0
            row, offset, left = row[more], offset[more], left[more]
        return found

    def _piece_offset(self, stretch: Stretch, position: I64, seq_length: int, key: U64 | None) -> I64:
        """First token, in the row of the stretch, of the pieces at positions of its order."""
        if isinstance(stretch, Rest):
            count = self._ring.length(stretch) // seq_length
            if key is not None:
                position = permute(position, count, _broadcast(_key_of(stretch, key), position))
            return position * seq_length
        per_window = self._ring.window // seq_length
        window, within = np.divmod(position, per_window)
        window += stretch.first
        if key is not None:
            shuffled = np.empty_like(within)
            for number in np.unique(window).tolist():
                mine = window == number
                count = self._ring.length(Windows(number, number + 1)) // seq_length
                window_key = subkeys(key, np.array([number]))
                shuffled[mine] = permute(within[mine], count, _broadcast(window_key, within[mine]))
            within = shuffled
        offset: I64 = (window - stretch.first) * self._ring.window + within * seq_length
        return offset

    def _place(self, stretch: Stretch, offset: I64, epoch: int, key: U64 | None) -> tuple[I64, I64]:
        """([n] token in the corpus stream, [n] tokens that follow it there) of offsets in a stretch's row."""
        if isinstance(stretch, Rest):
            piece, within = np.divmod(offset, stretch.seq_length)
            inner = self._piece_offset(stretch.of, piece + stretch.read, stretch.seq_length, key)
            start, run = self._place(stretch.of, inner + within, epoch, key)
            return start, np.minimum(run, stretch.seq_length - within)
        group, within = np.divmod(offset + stretch.first * self._ring.window, self._ring.group)
        rotation = 0
        if key is not None:
            groups = self.tokens // self._ring.group
            whole = group < groups  # the last, shorter group stays the last; the rotation moves it
            group[whole] = permute(group[whole], groups, _broadcast(key, group[whole]))
            assert self._key is not None
            rotation = int(subkeys(self._key, np.array([2 * epoch + 1]))[0] % np.uint64(self.tokens))
        start = (group * self._ring.group + within + rotation) % self.tokens
        return start, np.minimum(self._ring.group - within, self.tokens - start)


def _key_of(rest: Rest, key: U64) -> U64:
    """Key of the order in which the pieces of a rest come."""
    parent = _key_of(rest.of, key) if isinstance(rest.of, Rest) else subkeys(key, np.array([rest.of.first]))
    return subkeys(subkeys(parent, np.array([rest.seq_length])), np.array([rest.read]))


def _broadcast(key: U64, like: I64) -> U64:
    return np.broadcast_to(key, like.shape)
