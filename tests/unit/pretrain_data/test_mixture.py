from __future__ import annotations

import numpy as np
import pytest

from data_tools.errors import DataError
from pretrain.data.mixture import CYCLE, build_mixture
from pretrain.data.philox import derive_key

KEY = derive_key(5, "mixture")


def test_shares_are_exact_in_each_cycle_and_spread_over_it():
    mixture = build_mixture(["a", "b", "c", "d"], [0.7, 0.2, 0.07, 0.03], KEY)
    assert mixture.counts.tolist() == [
        2867,
        819,
        287,
        123,
    ]  # largest remainder of 2867.2, 819.2, 286.72, 122.88
    corpus, _ = mixture.locate(np.arange(5 * CYCLE))
    for cycle in corpus.reshape(5, CYCLE):
        assert np.bincount(cycle).tolist() == mixture.counts.tolist()
    halves = [np.bincount(half, minlength=4)[0] for half in corpus[:CYCLE].reshape(2, -1)]
    assert abs(halves[0] - halves[1]) < 200


def test_numbers_within_a_corpus_are_dense_and_ascending():
    mixture = build_mixture(["a", "b", "c"], [3.0, 1.0, 0.01], KEY)
    corpus, number = mixture.locate(np.arange(3 * CYCLE + 777))
    for index in range(3):
        mine = number[corpus == index]
        assert np.array_equal(mine, np.arange(len(mine)))
        assert mixture.consumed(3 * CYCLE + 777)[index] == len(mine)


def test_far_positions_are_found_without_walking():
    mixture = build_mixture(["a", "b"], [1.0, 2.0], KEY)
    far = 10**13
    corpus, number = mixture.locate(np.array([far]))
    assert int(number[0]) == int(mixture.consumed(far)[corpus[0]])


def test_one_corpus_is_the_identity():
    corpus, number = build_mixture(["a"], [0.3], KEY).locate(np.arange(10_000))
    assert not corpus.any()
    assert np.array_equal(number, np.arange(10_000))


@pytest.mark.parametrize("sizes", [[100, 100], [5000, 17], [4096, 9000], [1, 1]])
def test_samples_before_repeat_against_counting(sizes):
    mixture = build_mixture(["a", "b"], [0.8, 0.2], KEY)
    corpus, number = mixture.locate(np.arange(40 * CYCLE))
    repeats = np.flatnonzero(number >= np.array(sizes)[corpus])
    assert mixture.samples_before_repeat(np.array(sizes)) == repeats[0]


def test_a_weight_without_a_slot_is_refused_by_name():
    with pytest.raises(DataError, match="'tiny'"):
        build_mixture(["big", "tiny"], [1e6, 1.0], KEY)
