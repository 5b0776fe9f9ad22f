from __future__ import annotations

import numpy as np
import pytest

from data_tools.tokenizer import Tokenizer
from pretrain.config.data import MaskingConfig
from pretrain.data.objectives import PairBatch, Vocabulary, causal_lm, masked_lm
from pretrain.data.philox import SampleIds, derive_key
from tests.unit.pretrain_data.support import marked_vocabulary

VOCABULARY = marked_vocabulary(np.random.default_rng(0))
WHOLE, SINGLE = MaskingConfig(), MaskingConfig(whole_word=False)


def ids_of(samples: np.ndarray, epoch: int = 0) -> SampleIds:
    return SampleIds(np.full(len(samples), derive_key(1)), np.full(len(samples), epoch), samples)


def random_pairs(batch: int, length: int, seed: int = 0) -> PairBatch:
    """[CLS] A [SEP] B [SEP] of random ordinary tokens and random lengths."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((batch, length), dtype=np.int64)
    padding = np.zeros((batch, length), dtype=np.bool_)
    for row in range(batch):
        end = int(rng.integers(length // 2, length + 1))
        tokens[row, :end] = rng.choice(VOCABULARY.ordinary, end)
        tokens[row, [0, int(rng.integers(2, end - 2)), end - 1]] = [2, 3, 3]
        padding[row, :end] = True
    return PairBatch(tokens, np.zeros_like(tokens), padding, np.zeros(batch, dtype=np.int64))


def words_of(pairs: PairBatch, row: int) -> list[list[int]]:
    """Positions of each word of a row, by a plain loop."""
    words: list[list[int]] = []
    inside = False
    for position, token in enumerate(pairs.tokens[row]):
        if not pairs.padding_mask[row, position] or VOCABULARY.is_special[token]:
            inside = False
            continue
        if not inside or VOCABULARY.is_word_start[token]:
            words.append([])
        words[-1].append(position)
        inside = True
    return words


def test_causal_lm_shifts_by_one():
    tokens = np.arange(12).reshape(2, 6)
    batch = causal_lm(tokens)
    assert batch["tokens"].tolist() == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]
    assert batch["labels"].tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]
    assert batch["loss_mask"].dtype == np.float32 and batch["loss_mask"].all()
    assert batch["tokens"].flags.c_contiguous and batch["labels"].flags.c_contiguous


@pytest.mark.parametrize("masking", [WHOLE, SINGLE, MaskingConfig(mask_probability=0.4)])
def test_share_of_predicted_tokens(masking):
    pairs = random_pairs(1500, 128)
    batch = masked_lm(pairs, ids_of(np.arange(1500)), VOCABULARY, masking)
    ordinary = int((pairs.padding_mask & ~VOCABULARY.is_special[pairs.tokens]).sum())
    share = len(batch["masked_positions"]) / ordinary
    assert abs(share - masking.mask_probability) < 0.001


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.5, 0.3), (1.0, 0.0)])
def test_what_becomes_of_predicted_tokens(shares):
    masking = MaskingConfig(mask_token_share=shares[0], random_token_share=shares[1])
    pairs = random_pairs(3000, 128)
    batch = masked_lm(pairs, ids_of(np.arange(3000)), VOCABULARY, masking)
    seen = batch["tokens"].ravel()[batch["masked_positions"]]
    labels = batch["masked_labels"]
    count = len(labels)
    assert np.array_equal(labels, pairs.tokens.ravel()[batch["masked_positions"]])
    masked, kept = seen == VOCABULARY.mask_id, seen == labels
    random = seen[~masked & ~kept]
    tolerance = 4 * np.sqrt(0.25 / count)
    assert abs(masked.mean() - shares[0]) < tolerance
    assert abs(kept.mean() - (1 - sum(shares))) < tolerance
    assert not VOCABULARY.is_special[random].any()
    assert (random.size == 0) == (shares[1] == 0.0)
    if random.size:
        assert random.min() < 3000 and random.max() > 62_000  # drawn from the whole vocabulary
    untouched = np.delete(batch["tokens"].ravel(), batch["masked_positions"])
    assert np.array_equal(untouched, np.delete(pairs.tokens.ravel(), batch["masked_positions"]))


def test_words_are_predicted_whole_and_specials_never():
    pairs = random_pairs(200, 64)
    batch = masked_lm(pairs, ids_of(np.arange(200)), VOCABULARY, WHOLE)
    positions = batch["masked_positions"]
    assert np.array_equal(positions, np.unique(positions)) and positions.dtype == np.int64
    chosen = np.zeros(pairs.tokens.size, dtype=np.bool_)
    chosen[positions] = True
    chosen = chosen.reshape(pairs.tokens.shape)
    total, longer = 0, 0
    for row in range(200):
        taken = 0
        for word in words_of(pairs, row):
            states = set(chosen[row, word].tolist())
            assert len(states) == 1, "a word was predicted in part"
            taken += len(word) * (True in states)
            longer += len(word) > 1 and True in states
        assert taken == chosen[row].sum(), "something outside words was predicted"
        assert taken >= 1
        total += taken
    assert total == len(positions) and longer > 100
    assert not VOCABULARY.is_special[batch["masked_labels"]].any()


def test_long_words_are_not_preferred_nor_avoided():
    """Every token has the same chance, whatever the length of its word."""
    pairs = random_pairs(1, 128)
    tokens = np.repeat(pairs.tokens, 4000, axis=0)
    padding = np.repeat(pairs.padding_mask, 4000, axis=0)
    many = PairBatch(tokens, np.zeros_like(tokens), padding, np.zeros(4000, dtype=np.int64))
    batch = masked_lm(many, ids_of(np.arange(4000)), VOCABULARY, WHOLE)
    frequency = np.bincount(batch["masked_positions"] % 128, minlength=128) / 4000
    for word in words_of(pairs, 0):
        assert abs(frequency[word[0]] - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 4000) + 0.01


def test_masks_do_not_depend_on_batch_or_order():
    pairs = random_pairs(24, 96)
    samples = np.arange(1000, 1024)
    whole = masked_lm(pairs, ids_of(samples), VOCABULARY, WHOLE)
    shuffled = np.random.default_rng(3).permutation(24)
    for rows in (*np.split(shuffled, 4), shuffled[:1]):
        part = PairBatch(*(array[rows] for array in pairs))
        again = masked_lm(part, ids_of(samples[rows]), VOCABULARY, WHOLE)
        assert np.array_equal(again["tokens"], whole["tokens"][rows])
        flat = again["masked_positions"]
        origin = rows[flat // 96] * 96 + flat % 96
        assert np.isin(origin, whole["masked_positions"]).all()
    other_epoch = masked_lm(pairs, ids_of(samples, epoch=1), VOCABULARY, WHOLE)
    assert not np.array_equal(other_epoch["tokens"], whole["tokens"])


def test_a_sample_with_little_text_predicts_one_word():
    tokens = np.array([[2, 100, 3, 200, 3, 0]])
    pairs = PairBatch(tokens, np.zeros_like(tokens), tokens > 0, np.zeros(1, dtype=np.int64))
    batch = masked_lm(pairs, ids_of(np.array([0])), VOCABULARY, WHOLE)
    assert len(batch["masked_positions"]) == 1


def test_words_of_a_real_tokenizer(tokenizer: Tokenizer):
    vocabulary = Vocabulary.of(tokenizer)
    text = tokenizer.encode("bado kelifo pumani gasetu rolibe")
    tokens = np.array([[tokenizer.cls_id, *text, tokenizer.sep_id]] * 300)
    pairs = PairBatch(tokens, np.zeros_like(tokens), tokens >= 0, np.zeros(300, dtype=np.int64))
    batch = masked_lm(pairs, ids_of(np.arange(300)), vocabulary, WHOLE)
    pieces = ["", *(tokenizer.id_to_piece(token) for token in text)]
    begins = [i for i in range(1, len(pieces)) if pieces[i][0] == "\u2581" or pieces[i - 1] in ("", "\u2581")]
    words = [set(range(a, b)) for a, b in zip(begins, [*begins[1:], len(pieces)], strict=True)]
    assert len(words) >= 5 and max(map(len, words)) > 1
    rows, columns = np.divmod(batch["masked_positions"], tokens.shape[1])
    predicted = [set(columns[rows == row].tolist()) for row in range(300)]
    for mine in predicted:
        assert mine == set().union(*(word for word in words if word & mine))
    for word, neighbour in zip(words, words[1:], strict=False):
        assert any(word <= mine and not neighbour & mine for mine in predicted), (
            "words are predicted together"
        )
