"""Encode each distinct stretch of text once, with exactly sentencepiece's result.

Between two characters that stand side by side in no piece, no token can cross. So a text is cut at all such
places into *segments*, on average four or five bytes of English, and its ids are those of its segments, one
after the other. The ids of a segment are remembered, and only new ones are encoded.

Why this is exact:

- unigram: every segmentation has a token end at each cut, so the best one is made of the best ones of the
  segments. Sums of scores must not be rounded, else what stands before a segment would decide ties in it: all
  scores are multiples of 1/64, and sentencepiece keeps sums below 2^17 (+ one score), where float32 is exact.
- bpe: a merge needs a piece that it makes, so none goes over a cut, and among the merges of a segment the
  order, by score and then by place, is its own.
- A run of characters without a piece is one unknown token, unless they are spelled in bytes: without bytes,
  one side of each cut is a character that has a piece.

`cut_table` returns None for a model that is not known to be like this: one that normalises texts, or whose
scores are rounded. New segments of a unigram model are encoded by our own search for the best pieces, which
tries them in sentencepiece's order with whole numbers for scores; those of other models by sentencepiece. The
inner loops are C (`_segments.c`); without the compiled module nothing is remembered.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data_tools.tokenizer.unigram import SCORE_STEPS, unigram_tables

try:
    from data_tools.tokenizer import _segments
except ImportError:  # not compiled: `is_compiled` says so
    _segments = None  # type: ignore[assignment]

SEPARATOR = b"\xff"
"""Stands between texts; no byte of UTF-8."""
_SEPARATOR_ID = -1
_BOUNDARY = "\u2581"
_CHUNK_BYTES = 1 << 18
_ENTRIES = 1 << 18
_KEY_BYTES = 1 << 22
_MOST_IDS = 1 << 21
_LARGEST_SCORE = 4096.0
_PAIRS = 256 * 256

Ids = npt.NDArray[np.int32]


NOT_COMPILED = (
    "data_tools/tokenizer/_segments.c is not compiled, so sentencepiece encodes every word anew, which takes "
    "two to three times as long: install a C compiler and run `pip install -e .` (or `make venv`) again"
)


def is_compiled() -> bool:
    """Whether the C module is there, and of this release."""
    return hasattr(_segments, "unigram")


def cut_table(model: bytes) -> bytes | None:
    """[256 * 256] 1 where a text may be cut between two bytes, at index 256 * first + second.

    Args:
        model: a serialized sentencepiece model.

    Returns:
        None if the ids of segments are not known to be those of the text.
    """
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    if not (_takes_text_as_it_is(proto.normalizer_spec) and _decomposes(proto.trainer_spec, pieces)):
        return None
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    spelled = [
        piece.replace(_BOUNDARY, " ").encode()
        for piece, _, kind in pieces
        if kind in (kinds.NORMAL, kinds.USER_DEFINED)
    ]
    stream = np.frombuffer(SEPARATOR.join(spelled), np.uint8).astype(np.intp)
    cuts = np.ones(_PAIRS, np.bool_)
    cuts[stream[:-1] * 256 + stream[1:]] = False
    table = cuts.reshape(256, 256)
    table[:, 0x80:0xC0] = False  # inside a character
    if not proto.trainer_spec.byte_fallback:
        known = np.zeros(256, np.bool_)
        known[[piece[0] for piece in spelled if len(piece) == 1]] = True
        table &= known[:, None] | known[None, :]
    table[:, 0xFF] = table[0xFF, :] = True
    # A line break separates the segments that are encoded together: it must be alone, and have a piece.
    alone = table[10, :0x80].all() and table[10, 0xC0:].all() and table[:, 10].all()
    return table.tobytes() if alone and b"\n" in spelled else None


def _takes_text_as_it_is(spec: Any) -> bool:
    """Whether the model changes nothing in a text but spaces, each to U+2581."""
    changes = spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces
    return spec.escape_whitespaces and not changes


def _decomposes(spec: Any, pieces: Sequence[tuple[str, float, int]]) -> bool:
    """Whether the model's choice within a segment depends on nothing outside (see above)."""
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    found = {kind for _, _, kind in pieces}
    scores = np.array([score for _, score, kind in pieces if kind == kinds.NORMAL], np.float64)
    if kinds.UNUSED in found:
        return False
    if spec.model_type == spec.BPE:
        return len(np.unique(scores)) == len(scores)
    steps = scores * SCORE_STEPS
    exact = bool(np.all(steps == np.round(steps)) and np.all(np.abs(scores) <= _LARGEST_SCORE))
    return spec.model_type == spec.UNIGRAM and exact and kinds.USER_DEFINED not in found


class SegmentEncoder:
    """Encodes texts, and remembers segments within 25 MB and what one long segment takes."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, cuts: bytes) -> None:
        """Begin with nothing remembered.

        Args:
            processor: of the model.
            cuts: its `cut_table`.
        """
        self._processor, self._cuts = processor, cuts
        self._unigram = unigram_tables(processor.serialized_model_proto())
        self._newline: int = processor.piece_to_id("\n")
        self._lock = threading.Lock()
        self._slots = np.zeros((2 * _ENTRIES, 2), np.uint64)
        self._keys = np.empty(_KEY_BYTES, np.uint8)
        self._key_ends = np.zeros(_ENTRIES + 1, np.uint32)
        self._id_ends = np.zeros(_ENTRIES + 1, np.int64)
        self._found = np.empty(_CHUNK_BYTES, np.int32)
        self._fresh = np.empty((_CHUNK_BYTES, 2), np.int64)
        self._ids = np.empty(0, np.int32)
        self._entries = 0
        self._forget()

    def encode(self, texts: Sequence[bytes]) -> list[Ids]:
        """Ids of each text.

        Args:
            texts: valid UTF-8, without U+2581.

        Raises:
            RuntimeError: sentencepiece fails.
        """
        if not texts:
            return []
        ids, lengths = self.encode_joined(SEPARATOR.join(texts))
        return np.split(ids, np.cumsum(lengths)[:-1])

    def encode_joined(self, data: bytes) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of texts, one after the other, and how many each has.

        Args:
            data: at least one text as `encode` takes them, with `SEPARATOR` between two.

        Raises:
            RuntimeError: sentencepiece fails.
        """
        with self._lock:
            ids = self._encode_joined(data)
        between = ids == _SEPARATOR_ID
        lengths = np.diff(np.flatnonzero(between), prepend=-1, append=len(ids)) - 1
        return ids[~between], lengths

    def _encode_joined(self, data: bytes) -> Ids:
        """Ids of texts, with the separator's between them."""
        parts: list[bytes] = []
        at = 0
        while at < len(data):
            if self._is_full():
                self._forget()
            known = self._entries
            stop = min(at + _CHUNK_BYTES, len(data))
            state = (self._cuts, self._slots, self._keys, self._key_ends, known, self._found, self._fresh)
            at, self._entries, found, lines = _segments.find(data, at, stop, *state)
            self._learn(lines, known)
            ends = self._id_ends[: self._entries + 1]
            parts.append(_segments.gather(self._found[:found], ends, self._ids))
        return np.frombuffer(b"".join(parts), np.int32)

    def _learn(self, lines: bytes, known: int) -> None:
        """Encode new segments, one a line; they become the entries from `known` on."""
        if self._entries == known:
            return
        count = self._entries - known
        if self._unigram is not None:
            ends = np.empty(count, np.int64)
            self._remember(
                np.frombuffer(_segments.unigram(lines, *self._unigram, ends), np.int32), ends, known
            )
            return
        ids = self._processor.encode_as_numpy([lines], num_threads=1)[0]
        between = ids == self._newline
        ends = np.flatnonzero(between)
        assert len(ends) == count - 1, "a segment holds a line break"
        ids = ids[~between]
        self._remember(ids, np.append(ends - np.arange(len(ends)), len(ids)), known)

    def _remember(self, ids: npt.ArrayLike, ends: npt.ArrayLike, known: int) -> None:
        """Append ids; `ends` are those of the entries from `known` on."""
        new = np.asarray(ids, np.int32)
        used = int(self._id_ends[known])
        if used + len(new) > len(self._ids):
            room = np.empty(max(used + len(new), 2 * len(self._ids)), np.int32)
            room[:used] = self._ids[:used]
            self._ids = room
        self._ids[used : used + len(new)] = new
        self._id_ends[known + 1 : known + 1 + np.size(ends)] = used + np.asarray(ends, np.int64)

    def _is_full(self) -> bool:
        """Whether `find` might find no room for a single segment, or the ids take too much memory."""
        keys, ids = int(self._key_ends[self._entries]), int(self._id_ends[self._entries])
        return self._entries == _ENTRIES or keys + 64 > _KEY_BYTES or ids > _MOST_IDS

    def _forget(self) -> None:
        """Start anew, with the two segments that are not encoded by sentencepiece."""
        self._slots.fill(0)
        self._ids = np.empty(0, np.int32)
        data = SEPARATOR + b"\n"
        state = (self._cuts, self._slots, self._keys, self._key_ends, 0, self._found, self._fresh)
        _, self._entries, _, _ = _segments.find(data, 0, len(data), *state)
        self._remember([_SEPARATOR_ID, self._newline], [1, 2], 0)
