"""Documents -> tokens, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from data_tools.sentences import split_sentences
from data_tools.tokenizer import Tokenizer

_GIVEN_SENTENCE = 32
"""Tokens in a sentence of what comes tokenised: it has none, but BERT's pairs are cut between some."""

Lengths = npt.NDArray[np.int64]


class Encoded(NamedTuple):
    """Documents, one after the other.

    Attributes:
        tokens: [T] of the shard's type; each document ends with eod.
        lengths: [D] tokens of each document.
        sentence_counts: [D] sentences of each document.
        sentence_lengths: [sum of these] tokens of each sentence, without eod.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    lengths: Lengths
    sentence_counts: Lengths
    sentence_lengths: Lengths

    def split(self, cuts: Sequence[int]) -> list[Self]:
        """The documents before the first of `cuts`, from there to the next, ..., and behind the last."""
        documents = np.array(cuts, np.int64)
        tokens, sentences = (
            np.concatenate([[0], np.cumsum(counts)])[documents]
            for counts in (self.lengths, self.sentence_counts)
        )
        places = (tokens, documents, documents, sentences)
        parts = (np.split(array, at) for array, at in zip(self, places, strict=True))
        return [type(self)(*arrays) for arrays in zip(*parts, strict=True)]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The documents of all parts; at least one."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[bytes], sentences: bool, dtype: npt.DTypeLike
) -> Encoded:
    """Tokenise documents.

    With `sentences`, each sentence is tokenised by itself and a document is their concatenation, so that
    sentence lengths in tokens are exact.

    Args:
        tokenizer: with an eod.
        texts: UTF-8.
        sentences: split them.
        dtype: of the tokens.
    """
    parts, counts = texts, np.ones(len(texts), np.int64)
    if sentences:
        split = [split_sentences(text.decode()) for text in texts]
        parts = [sentence.encode() for document in split for sentence in document]
        counts = np.array([len(document) for document in split], np.int64)
    ids, lengths = tokenizer.encode_utf8(parts)
    return _with_ends(ids, lengths, counts, tokenizer.eod_id, dtype)


def take_given(bodies: Sequence[npt.NDArray[np.integer]], eod_id: int, dtype: npt.DTypeLike) -> Encoded:
    """Documents that came tokenised, without their eod."""
    lengths = [
        min(_GIVEN_SENTENCE, len(body) - start)
        for body in bodies
        for start in range(0, len(body), _GIVEN_SENTENCE)
    ]
    counts = [-(-len(body) // _GIVEN_SENTENCE) for body in bodies]
    ids = np.concatenate(bodies)
    return _with_ends(ids, np.array(lengths, np.int64), np.array(counts, np.int64), eod_id, dtype)


def _with_ends(
    ids: npt.NDArray[np.integer], lengths: Lengths, counts: Lengths, eod_id: int | None, dtype: npt.DTypeLike
) -> Encoded:
    """Documents of `counts` sentences of `lengths` tokens each."""
    assert eod_id is not None, "checked when the plan was made"
    sentence_ends = np.concatenate([[0], np.cumsum(lengths)])
    ends = sentence_ends[np.cumsum(counts)]
    # Unsafe, but the ids fit: vocab_size chose the type.
    tokens = np.insert(ids.astype(dtype, casting="unsafe", copy=False), ends, eod_id)
    return Encoded(tokens, np.diff(ends, prepend=0) + 1, counts, lengths)
