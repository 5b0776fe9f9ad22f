"""Which documents go, from their records: equal hashes, and connected components of shared bands.

Of each group the document with the smallest rank (file, position) stays, so the result is a function of the
set of records: neither their order nor how they are cut into partitions matters.

Memory: `exact_duplicates` and `near_edges` take about twice the size of their partition's records. A hash
that very many documents share costs no more than others: a group of n gives n - 1 edges, a star, not n^2.
`near_duplicates` holds one edge (56 bytes) per document that has a near duplicate and the edges that it has
taken in since it last reduced them, 550 bytes per such document at its peak (measured: 440 MB for 800,000),
whatever the number of bands and partitions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.dedup.signatures import Records

Keys = npt.NDArray[np.bytes_]
Indices = npt.NDArray[np.int64]

_NODE = ("key", "file", "position")
EDGE_DTYPE = np.dtype(
    [(f"{name}_{end}", kind) for end in "ab" for name, kind in zip(_NODE, ("S16", "<u4", "<u8"), strict=True)]
)
"""Two documents that are alike, named by their keys and ranks; a has the smaller rank."""

_LEAST_TO_REDUCE = 1 << 20  # edges; below this, reducing more often saves nothing worth having


def exact_duplicates(records: Records) -> Keys:
    """Keys of the documents to drop, sorted.

    Args:
        records: all `EXACT_DTYPE` records of one partition.
    """
    order, group_first = _groups(records, ("high", "low"))
    dropped = order[order != group_first]
    return np.sort(records["key"][dropped])


def near_edges(records: Records) -> Records:
    """`EDGE_DTYPE` edges between documents that share a band: from the first of each group to every other.

    Args:
        records: all `BAND_DTYPE` records of one partition.
    """
    order, group_first = _groups(records, ("high",))
    other = order != group_first
    return _edges(records, group_first[other], order[other])


def near_duplicates(edges: Iterable[Records]) -> Keys:
    """Keys of the documents to drop, sorted: all but the first of each connected component.

    Args:
        edges: arrays of `EDGE_DTYPE`, of all partitions; they can be read from files one by one.
    """
    forest: Records = np.empty(0, dtype=EDGE_DTYPE)
    waiting: list[Records] = []
    for part in edges:
        waiting.append(part)
        if sum(map(len, waiting)) >= max(len(forest), _LEAST_TO_REDUCE):
            forest, waiting = _reduce(np.concatenate([forest, *waiting])), []
    forest = _reduce(np.concatenate([forest, *waiting]))
    return np.sort(forest["key_b"])


def _groups(records: Records, names: tuple[str, ...]) -> tuple[Indices, Indices]:
    """Records whose named fields equal those of another, ordered by these and by rank.

    Returns:
        [M] indices of such records, and [M] the index of the first, of smallest rank, of each one's group.
    """
    hashes, inverse_counts = np.unique(records[names[0]], return_counts=True)
    repeated = hashes[inverse_counts > 1]
    place = np.minimum(np.searchsorted(repeated, records[names[0]]), max(len(repeated) - 1, 0))
    candidates = (
        np.flatnonzero(repeated[place] == records[names[0]]) if len(repeated) else np.empty(0, dtype=np.int64)
    )
    chosen = records[candidates]
    order = np.lexsort((chosen["position"], chosen["file"], *(chosen[name] for name in reversed(names))))
    chosen, candidates = chosen[order], candidates[order]
    begins = np.ones(len(chosen), dtype=np.bool_)
    begins[1:] = np.any([chosen[name][1:] != chosen[name][:-1] for name in names], axis=0)
    starts = np.flatnonzero(begins)
    return candidates, candidates[np.repeat(starts, np.diff(starts, append=len(chosen)))]


def _edges(documents: Records, first: Indices, second: Indices) -> Records:
    edges: Records = np.empty(len(first), dtype=EDGE_DTYPE)
    for end, index in (("a", first), ("b", second)):
        for name in _NODE:
            edges[f"{name}_{end}"] = documents[name][index]
    return edges


def _reduce(edges: Records) -> Records:
    """The same components with the fewest edges: from the first document of each to every other."""
    ends = [{name: edges[f"{name}_{end}"] for name in _NODE} for end in "ab"]
    nodes, first, second = _number(ends)
    labels = _components(len(nodes), first, second)
    others = np.flatnonzero(labels != np.arange(len(labels)))
    return _edges(nodes, labels[others], others)


def _number(ends: list[dict[str, npt.NDArray[Any]]]) -> tuple[Records, Indices, Indices]:
    """The documents at the ends of edges, each once and ordered by rank, and each edge's two in numbers."""
    position, file, key = (np.concatenate([end[name] for end in ends]) for name in reversed(_NODE))
    order = np.lexsort((position, file))
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = (np.diff(position[order]) != 0) | (np.diff(file[order]) != 0)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(is_new) - 1
    once = order[is_new]
    nodes: Records = np.empty(len(once), dtype=[("key", "S16"), ("file", "<u4"), ("position", "<u8")])
    nodes["key"], nodes["file"], nodes["position"] = key[once], file[once], position[once]
    half = len(numbers) // 2
    return nodes, numbers[:half], numbers[half:]


def _components(count: int, first: Indices, second: Indices) -> Indices:
    """[count] for each node the smallest number in its connected component.

    Labels fall to the smaller one across each edge, for the labels' own nodes, and then along chains of
    labels (pointer jumping), until both ends of every edge agree: a logarithmic number of rounds
    (Shiloach and Vishkin 1982), each a few numpy operations over the edges that still disagree.
    """
    labels = np.arange(count, dtype=np.int64)
    while len(first):
        left, right = labels[first], labels[second]
        open_edges = left != right
        first, second, left, right = (part[open_edges] for part in (first, second, left, right))
        np.minimum.at(labels, np.maximum(left, right), np.minimum(left, right))
        while np.any((jumped := labels[labels]) != labels):
            labels = jumped
    return labels
