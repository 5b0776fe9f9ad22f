"""From samples to what the model sees and must predict. Pure functions, vectorised over the micro-batch.

B is the number of samples, S their length in tokens, m the number of predicted tokens in the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools.tokenizer import Tokenizer
from pretrain.config.data import MaskingConfig
from pretrain.data.philox import I64, SHIFT32, U64, SampleIds, below, draw_words, draws_at

MicroBatch = dict[str, npt.NDArray[np.generic]]
Bools = npt.NDArray[np.bool_]

PURPOSE_WORD_ORDER, PURPOSE_LAST_WORD, PURPOSE_REPLACEMENT = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What masking must know about the token ids.

    Attributes:
        is_special: [V] ids that are never masked and never put in as a random token.
        is_word_start: [V] the piece begins a word wherever it stands.
        is_word_end: [V] whatever follows the piece begins a word; every special id is one.
        ordinary: all ids that are not special.
        pad_id, cls_id, sep_id, mask_id: ids of the special tokens.
    """

    is_special: Bools
    is_word_start: Bools
    is_word_end: Bools
    ordinary: I64
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Collect them from a tokenizer.

        Raises:
            DataError: it lacks a special id that masking needs.
        """
        pad_id, cls_id, sep_id, mask_id = tokenizer.require("pad", "cls", "sep", "mask", purpose="BERT")
        is_special = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
        is_special[list(tokenizer.special_ids)] = True
        return cls(
            is_special=is_special,
            is_word_start=tokenizer.is_word_start,
            is_word_end=tokenizer.is_word_end,
            ordinary=np.flatnonzero(~is_special),
            pad_id=pad_id,
            cls_id=cls_id,
            sep_id=sep_id,
            mask_id=mask_id,
        )


class PairBatch(NamedTuple):
    """Sentence pairs [CLS] A [SEP] B [SEP], or segments [CLS] A [SEP], not yet masked.

    Attributes:
        tokens: [B, S] int64, padded with pad_id.
        token_types: [B, S] int64, 1 for B and its [SEP].
        padding_mask: [B, S] bool, True for real tokens.
        next_sentence_labels: [B] int64, 0 = B follows A, 1 = B is from another document (NSP) or the two are
            swapped (SOP), -100 = there is no B.
    """

    tokens: I64
    token_types: I64
    padding_mask: Bools
    next_sentence_labels: I64


class DocumentRows(NamedTuple):
    """Rows of tokens that know where documents begin.

    Attributes:
        tokens: [B, S], of any integer type.
        labels: [B, S] the token after each.
        begins: [B, S] bool, True where another document, another part of one, or the padding begins.
        within: [B, S] bool, True where the label is of the same document as its token; False in padding.
    """

    tokens: npt.NDArray[np.integer]
    labels: npt.NDArray[np.integer]
    begins: Bools
    within: Bools


def causal_lm(tokens: npt.NDArray[np.integer]) -> MicroBatch:
    """Predict every token from those before it.

    Args:
        tokens: [B, S + 1], of any integer type.

    Returns:
        tokens [B, S] int64, labels [B, S] int64, loss_mask [B, S] float32 (all ones).
    """
    inputs, labels = tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)
    return {"tokens": inputs, "labels": labels, "loss_mask": np.ones(inputs.shape, dtype=np.float32)}


def document_lm(rows: DocumentRows, attention: bool, positions: bool, within: bool) -> MicroBatch:
    """Predict every token from those before it, with boundaries between documents.

    Args:
        rows: B samples of S tokens.
        attention: keep attention within documents: adds document_ids [B, S] int32, ascending from 0.
        positions: count positions within documents: adds position_ids [B, S] int32.
        within: leave out labels that are of another document than their token.

    Returns:
        As `causal_lm`, and what was asked for.
    """
    batch: MicroBatch = {
        "tokens": rows.tokens.astype(np.int64),
        "labels": rows.labels.astype(np.int64),
        "loss_mask": rows.within.astype(np.float32) if within else np.ones(rows.tokens.shape, np.float32),
    }
    if attention:
        begins = rows.begins.copy()
        begins[:, 0] = False  # the first document is number 0, wherever it began
        batch["document_ids"] = np.cumsum(begins, axis=1, dtype=np.int32)
    if positions:
        column = np.arange(rows.tokens.shape[1], dtype=np.int32)
        batch["position_ids"] = column - np.maximum.accumulate(np.where(rows.begins, column, 0), axis=1)
    return batch


def masked_lm(pairs: PairBatch, ids: SampleIds, vocabulary: Vocabulary, masking: MaskingConfig) -> MicroBatch:
    """BERT's two objectives: predict hidden tokens, and whether B follows A (Devlin et al., 2019, A.1).

    Words are drawn in random order until `mask_probability` of a sample's ordinary tokens is reached. The
    last word is taken with the probability that makes the expected number exact; every sample predicts one
    word at least. Each predicted token then becomes [MASK], a random token, or stays.

    Args:
        pairs: B samples of S tokens.
        ids: identity of each sample; the only source of randomness.
        vocabulary: special ids and word boundaries.
        masking: shares, and whether whole words are hidden or single tokens.

    Returns:
        tokens [B, S] with the hidden ones replaced, token_types [B, S], padding_mask [B, S],
        masked_positions [m] (ascending, flat into B * S), masked_labels [m], next_sentence_labels [B].
    """
    ordinary = pairs.padding_mask & ~vocabulary.is_special[pairs.tokens]
    starts = _word_starts(pairs.tokens, ordinary, vocabulary) if masking.whole_word else ordinary
    positions = choose_positions(ordinary, starts, ids, masking.mask_probability)
    labels = pairs.tokens.ravel()[positions]
    tokens = pairs.tokens.copy()
    places = np.divmod(positions, tokens.shape[1])
    tokens.ravel()[positions] = _replacements(labels, places, ids, vocabulary, masking)
    return {
        "tokens": tokens,
        "token_types": pairs.token_types,
        "padding_mask": pairs.padding_mask,
        "masked_positions": positions,
        "masked_labels": labels,
        "next_sentence_labels": pairs.next_sentence_labels,
    }


def _word_starts(tokens: I64, ordinary: Bools, vocabulary: Vocabulary) -> Bools:
    """[B, S] ordinary tokens that begin a word: by their piece, or by what stands before them."""
    starts = vocabulary.is_word_start[tokens]
    starts[:, 0] = True
    starts[:, 1:] |= vocabulary.is_word_end[tokens[:, :-1]]
    return starts & ordinary


def choose_positions(ordinary: Bools, starts: Bools, ids: SampleIds, probability: float) -> I64:
    """Draw words until the share of predicted tokens is reached.

    Args:
        ordinary: [B, S] tokens that may be predicted.
        starts: [B, S] those of them that begin a word; the first ordinary token of a run must be one.
        ids: the B samples.
        probability: expected share of the ordinary tokens of each sample.

    Returns:
        [m] int64, flat into B * S, ascending.
    """
    batch, length = ordinary.shape
    candidates = np.flatnonzero(ordinary)
    word_of = np.cumsum(starts.ravel()[candidates]) - 1
    first = np.flatnonzero(starts)
    word_length = np.bincount(word_of, minlength=len(first))
    words, rows = _shuffle_in_rows(first, draw_words(ids, PURPOSE_WORD_ORDER, length), length)
    reached = np.cumsum(word_length[words])
    row_tokens = ordinary.sum(axis=1)
    before = reached - word_length[words] - (np.cumsum(row_tokens) - row_tokens)[rows]
    budget = probability * row_tokens
    # One draw for each row: the word that would overshoot comes in by the part of it that fits.
    luck = draw_words(ids, PURPOSE_LAST_WORD, 1)[:, 0].astype(np.float64) / 2.0**32
    taken = (before == 0) | (before + luck[rows] * word_length[words] < budget[rows])
    chosen = np.zeros(len(first), dtype=np.bool_)
    chosen[words[taken]] = True
    positions: I64 = candidates[chosen[word_of]]
    return positions


def _shuffle_in_rows(first: I64, order: U64, length: int) -> tuple[I64, I64]:
    """Words in random order within each row, rows ascending.

    Args:
        first: [W] flat position of each word's first token, ascending.
        order: [B, S] 32-bit draws; a word sorts by the draw at its first token.
        length: S.

    Returns:
        ([W] words, [W] row of each).
    """
    bits = np.uint64(max(1, (length - 1).bit_length()))
    row, column = np.divmod(first.astype(np.uint64), np.uint64(length))
    # One sort of (row, draw, column) in a word: equal draws cannot change the order with the batch.
    packed = np.sort((((row << SHIFT32) | order.ravel()[first]) << bits) | column)
    rows = (packed >> (SHIFT32 + bits)).astype(np.int64)
    columns = (packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    number = np.empty(len(order) * length, dtype=np.int64)
    number[first] = np.arange(len(first))
    return number[rows * length + columns], rows


def _replacements(
    labels: I64, places: tuple[I64, I64], ids: SampleIds, vocabulary: Vocabulary, masking: MaskingConfig
) -> I64:
    """[m] what the model sees in place of each predicted token; `places` are their rows and columns."""
    rows, columns = places
    action, choice, _, _ = draws_at(ids, rows, PURPOSE_REPLACEMENT, columns)
    random_tokens = vocabulary.ordinary[below(choice, np.uint64(len(vocabulary.ordinary)))]
    share = action.astype(np.float64) / 2.0**32
    changed = np.where(share < masking.mask_token_share, vocabulary.mask_id, random_tokens)
    return np.where(share < masking.mask_token_share + masking.random_token_share, changed, labels)
