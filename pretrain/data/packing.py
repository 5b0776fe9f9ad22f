"""Best-fit packing: which documents share a sample, so that few are cut and little is padded.

"Fewer Truncations Improve Language Modeling" (Ding et al., ICML 2024): documents longer than a sample are cut
into pieces of its length; what is left of them and all other documents are packed by best-fit decreasing.
A document of n tokens, end of document included, takes n - 1 places: its last token is only ever predicted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pretrain.data.philox import I64


def best_fit(sizes: I64, capacity: int) -> I64:
    """Best-fit decreasing: the largest items first, each into the bin with the least room that suffices.

    Items of one size are placed together: the bin that an item fits best is, with the room that is left, also
    the best for the next one, until it is full. So the work is that of distinct sizes and rooms, not items.

    Args:
        sizes: [n] 1 to capacity.
        capacity: of each bin.

    Returns:
        [n] bin of each item, counted in the order in which bins are opened.
    """
    order = np.argsort(-sizes, kind="stable")
    distinct, counts = np.unique(-sizes, return_counts=True)
    bins = np.empty(len(sizes), dtype=np.int64)
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where a bin has room r: the least room of s or more is a shift away
    opened = placed = 0
    for size, items in zip((-distinct).tolist(), counts.tolist(), strict=True):
        while items:
            fitting = rooms >> size
            room = size + (fitting & -fitting).bit_length() - 1 if fitting else capacity
            each = room // size
            wanted = -(-items // each)
            if fitting:
                taken = by_room[room][-wanted:]
                del by_room[room][-wanted:]
                rooms ^= 0 if by_room[room] else 1 << room
            else:
                taken = list(range(opened, opened + wanted))
                opened += wanted
            count = min(items, each * len(taken))
            bins[order[placed : placed + count]] = np.repeat(taken, each)[:count]
            full, rest = divmod(count, each)
            for left, some in ((room - each * size, taken[:full]), (room - rest * size, taken[full:])):
                if left and some:
                    by_room[left] += some
                    rooms |= 1 << left
            placed, items = placed + count, items - count
    return bins


class Packed(NamedTuple):
    """Documents in samples.

    Attributes:
        starts: [P] first token of each piece in the row of all documents; by sample, then ascending.
        lengths: [P] places that it takes: tokens that are put in, each of which predicts the one behind it.
        counts: [n] pieces of each sample.
    """

    starts: I64
    lengths: I64
    counts: I64


def pack_documents(document_lengths: I64, seq_length: int) -> Packed:
    """Cut and pack consecutive documents. Samples come in the order of their largest pieces.

    Args:
        document_lengths: [D] tokens of each, end of document included.
        seq_length: places in a sample.
    """
    places = np.maximum(document_lengths - 1, 0)
    pieces = -(-places // seq_length)
    document = np.repeat(np.arange(len(places)), pieces)
    cut = seq_length * (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    starts = (np.cumsum(document_lengths) - document_lengths)[document] + cut
    lengths = np.minimum(places[document] - cut, seq_length)
    bins = best_fit(lengths, seq_length)
    largest = np.lexsort((-lengths, bins))[np.flatnonzero(np.diff(np.sort(bins), prepend=-1))]
    rank = np.empty_like(largest)
    rank[np.argsort(starts[largest])] = np.arange(len(largest))
    sample = rank[bins]
    order = np.lexsort((starts, sample))
    return Packed(starts[order], lengths[order], np.bincount(sample, minlength=len(largest)))
