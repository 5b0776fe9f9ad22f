"""The vocabulary of a unigram model as tables, with which `_segments.c` finds the best pieces of a segment.

The trie of the pieces is a hash table of edges: (node, byte) -> node, with linear probing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sentencepiece import sentencepiece_model_pb2

SCORE_STEPS = 64
"""All scores of a model that is encoded by its segments are multiples of 1 / 64."""

_FEWEST_SLOTS = 1 << 8
_EMPTY = np.uint32(0xFFFFFFFF)
_HASH = np.uint32(0x9E3779B1)
_MOST_NODES = 1 << 23
NO_PIECE = -(1 << 31)
_UNKNOWN_PENALTY = 10
"""What a character without a piece costs beyond the worst piece (kUnkPenalty of sentencepiece)."""


class Unigram(NamedTuple):
    """What `_segments.unigram` works on.

    Attributes:
        edges: [slots, 2] uint32, slots a power of two: 256 * node + byte, and the node that it leads to; the
            root is node 0, which no edge leads to. Empty slots have 2^32 - 1 first.
        scores: [nodes] int32 score of the piece that ends at a node, or `NO_PIECE`.
        ids: [nodes] int32 its id.
        byte_ids: [256] int32 ids of bytes, or -1 throughout for a model without them.
        unknown_id, unknown_score: of a character without a piece.
    """

    edges: npt.NDArray[np.uint32]
    scores: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    byte_ids: npt.NDArray[np.int32]
    unknown_id: int
    unknown_score: int


def unigram_tables(model: bytes) -> Unigram | None:
    """The tables of a model whose `segments.cut_table` is not None; None if it is of another kind.

    Args:
        model: a serialized sentencepiece model.
    """
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    normal = np.array([i for i, (_, _, kind) in enumerate(pieces) if kind == kinds.NORMAL], np.int32)
    spelled = [pieces[i][0].replace("\u2581", " ").encode() for i in normal]
    # Else a space would be unknown, and spelled with the bytes of U+2581; and each spelling is one piece.
    plain = b" " in spelled and len(set(spelled)) == len(spelled)
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM or not plain:
        return None
    byte_ids = np.full(256, -1, np.int32)
    for i, (piece, _, kind) in enumerate(pieces):
        if kind == kinds.BYTE and proto.trainer_spec.byte_fallback:
            byte_ids[int(piece[3:5], 16)] = i
    scores = np.round(np.array([pieces[i][1] for i in normal]) * SCORE_STEPS).astype(np.int32)
    edges, ends = _trie(spelled)
    if len(edges) >= _MOST_NODES:
        return None
    node_scores, node_ids = np.full(len(edges) + 1, NO_PIECE, np.int32), np.zeros(len(edges) + 1, np.int32)
    node_scores[ends], node_ids[ends] = scores, normal
    unknown_id = next(i for i, (_, _, kind) in enumerate(pieces) if kind == kinds.UNKNOWN)
    unknown_score = int(scores.min()) - _UNKNOWN_PENALTY * SCORE_STEPS
    return Unigram(_hashed(edges), node_scores, node_ids, byte_ids, unknown_id, unknown_score)


def _trie(pieces: Sequence[bytes]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """The edges, as in `Unigram` but not hashed, and the node at which each piece ends."""
    text = np.frombuffer(b"".join(pieces), np.uint8).astype(np.int64)
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    starts = np.cumsum(lengths) - lengths
    nodes = np.zeros(len(pieces), np.int64)
    edges, count = [np.empty((0, 2), np.uint32)], 0
    longer = np.flatnonzero(lengths)  # than the depth that has been reached
    while len(longer):
        depth = len(edges) - 1
        keys, places = np.unique(nodes[longer] << 8 | text[starts[longer] + depth], return_inverse=True)
        edges.append(np.stack([keys, count + 1 + np.arange(len(keys))], axis=1).astype(np.uint32))
        nodes[longer] = count + 1 + places
        count += len(keys)
        longer = longer[lengths[longer] > depth + 1]
    return np.concatenate(edges), nodes


def _hashed(edges: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The edges in a hash table, at most half full: in rounds, those that find their slot taken move on."""
    bits = max(_FEWEST_SLOTS, 2 * len(edges)).bit_length()
    table = np.full((1 << bits, 2), _EMPTY)
    places = ((edges[:, 0] * _HASH) >> np.uint32(32 - bits)).astype(np.int64)
    while len(edges):
        _, winners = np.unique(places, return_index=True)
        winners = winners[table[places[winners], 0] == _EMPTY]
        table[places[winners]] = edges[winners]
        rest = np.ones(len(edges), np.bool_)
        rest[winners] = False
        edges, places = edges[rest], (places[rest] + 1) & ((1 << bits) - 1)
    return table
