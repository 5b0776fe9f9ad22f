"""Parts of a corpus epoch: windows that were not begun, and what is left of those that were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows first..stop-1 of an epoch, none of them begun."""

    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Rest:
    """The pieces of `seq_length` tokens in a window (or an earlier rest) that come after the first `read`."""

    of: Windows | Rest
    seq_length: int
    read: int


Stretch = Windows | Rest


@dataclass(frozen=True, slots=True)
class Ring:
    """An epoch's tokens in groups and windows.

    Attributes:
        tokens: of the corpus.
        group: tokens of a group.
        window: tokens of a window.
    """

    tokens: int
    group: int
    window: int

    def length(self, stretch: Stretch) -> int:
        """Tokens in the row of a stretch."""
        if isinstance(stretch, Rest):
            return (self.length(stretch.of) // stretch.seq_length - stretch.read) * stretch.seq_length
        return min(stretch.stop * self.window, self.tokens) - stretch.first * self.window

    def samples(self, stretch: Stretch, seq_length: int) -> int:
        """Pieces of seq_length in a stretch."""
        if isinstance(stretch, Rest):
            return self.length(stretch) // seq_length
        windows, rest = divmod(self.length(stretch), self.window)
        return windows * (self.window // seq_length) + rest // seq_length


def unread_after(ring: Ring, stretches: Sequence[Stretch], seq_length: int, done: int) -> tuple[Stretch, ...]:
    """What stays of stretches after `done` samples: whole windows, older rests, the new rest."""
    unread: list[Stretch] = []
    begun: list[Stretch] = []
    for stretch in stretches:
        samples = ring.samples(stretch, seq_length)
        read, done = min(done, samples), done - min(done, samples)
        if read == 0:
            unread.append(stretch)
        elif read < samples and isinstance(stretch, Rest):
            begun.append(Rest(stretch, seq_length, read))
        elif read < samples:
            assert isinstance(stretch, Windows)
            windows, read = divmod(read, ring.window // seq_length)
            current = stretch.first + windows
            if read:
                begun.append(Rest(Windows(current, current + 1), seq_length, read))
                current += 1
            if current < stretch.stop:
                unread.insert(0, Windows(current, stretch.stop))
    return (*unread, *begun)


def stretch_to_json(stretch: Stretch) -> Any:
    """A stretch as [first, stop] or {"of", "seq_length", "read"}."""
    if isinstance(stretch, Windows):
        return [stretch.first, stretch.stop]
    return {"of": stretch_to_json(stretch.of), "seq_length": stretch.seq_length, "read": stretch.read}


def stretch_from_json(value: Any) -> Stretch:
    """The inverse of `stretch_to_json`."""
    if isinstance(value, list):
        return Windows(int(value[0]), int(value[1]))
    return Rest(stretch_from_json(value["of"]), int(value["seq_length"]), int(value["read"]))
