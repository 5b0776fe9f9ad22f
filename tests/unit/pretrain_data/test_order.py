from __future__ import annotations

import itertools

import numpy as np
import pytest

from pretrain.data.order import GROUP, WINDOW, permute, sample_at
from pretrain.data.philox import SampleIds, below, derive_key, draw_words, draws_at, philox4x32


def words(*values: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], dtype=np.uint64) for value in values)


def epoch_order(count: int, epoch: int, key: np.uint64) -> np.ndarray:
    return sample_at(np.arange(count), np.full(count, epoch), count, key)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of the authors' Random123 library, kat_vectors, philox4x32 10 rounds
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    result = philox4x32(words(*counter), np.array([key], dtype=np.uint64))
    assert tuple(int(word[0]) for word in result) == expected


def test_draws_depend_on_each_part_of_the_identity_and_on_nothing_else():
    ids = SampleIds(np.array([1, 1, 1, 2], np.uint64), np.array([0, 0, 1, 0]), np.array([5, 5 + 2**32, 5, 5]))
    draws = draw_words(ids, purpose=1, count=7)
    assert len(np.unique(draws)) == draws.size
    assert not np.isin(draw_words(ids, purpose=2, count=7), draws).any()
    one = draw_words(ids.take(slice(2, 3)), purpose=1, count=12)
    assert np.array_equal(one[0, :7], draws[2])
    at = draws_at(ids, np.array([3]), 1, np.array([1]))
    assert np.array_equal(np.concatenate(at)[:3], draws[3, 4:7])


def test_below_covers_its_range_evenly():
    ids = SampleIds(np.full(30_000, 3, np.uint64), np.zeros(30_000, np.int64), np.arange(30_000))
    counts = np.bincount(below(draw_words(ids, 0, 1)[:, 0], np.uint64(10)), minlength=10)
    assert len(counts) == 10
    assert np.abs(counts - 3000).max() < 5 * np.sqrt(3000)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 63, 64, 65, 1009, 4097, 99_991])
def test_permute_is_a_bijection_for_each_key(count):
    index = np.arange(count)
    orders = [permute(index, count, np.full(count, derive_key(seed))) for seed in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), index)
    if count > 60:
        assert not np.array_equal(orders[0], orders[1])


def test_permute_of_a_few_elements_reaches_every_order_about_equally():
    keys = np.array([derive_key(seed) for seed in range(6000)])
    orders = np.stack([permute(np.full(6000, i), 4, keys) for i in range(4)], axis=1)
    found = {order: int((orders == order).all(axis=1).sum()) for order in itertools.permutations(range(4))}
    assert sum(found.values()) == 6000
    assert min(found.values()) > 150 and max(found.values()) < 370  # 250 each on average


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 10_007, WINDOW, WINDOW + 1, WINDOW + 65, 3 * WINDOW - 1])
def test_each_sample_comes_once_in_each_epoch(count):
    key = derive_key(11, "corpus")
    first, second = epoch_order(count, 0, key), epoch_order(count, 1, key)
    assert np.array_equal(np.sort(first), np.arange(count))
    assert np.array_equal(np.sort(second), np.arange(count))
    if count > 60:
        assert (first == second).mean() < 0.1
        assert len(np.unique((first - second) % count)) > count // 10  # not the same order, rotated
        assert (first == epoch_order(count, 0, derive_key(12, "corpus"))).mean() < 0.1


def test_position_of_a_sample_is_uniform_over_epochs():
    count, epochs = 640, 2000
    positions = np.zeros((epochs, 2), dtype=np.int64)
    for epoch in range(epochs):
        order = epoch_order(count, epoch, derive_key(0, "corpus"))
        positions[epoch] = [np.flatnonzero(order == sample)[0] for sample in (0, count - 1)]
    for column in positions.T:
        counts = np.bincount(column // 64, minlength=10)
        chi_square = float(((counts - epochs / 10) ** 2 / (epochs / 10)).sum())
        assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(positions.T)[0, 1]) < 0.08


def test_a_window_reads_whole_groups_from_all_over_the_epoch():
    count = 40 * WINDOW + 17
    window = sample_at(np.arange(WINDOW), np.zeros(WINDOW, np.int64), count, derive_key(0, "corpus"))
    # Runs of neighbours: 512 groups and, where two happen to touch, fewer; a wrapped group makes one more.
    runs = int((np.diff(np.sort(window)) != 1).sum()) + 1
    assert 450 < runs <= WINDOW // GROUP + 1
    assert len(np.unique(window * 40 // count)) == 40
    assert np.abs(np.diff(window)).mean() > count / 5  # consecutive samples come from far apart


def test_any_position_of_a_huge_epoch_costs_the_same():
    count = 10**13 // 2048
    position = np.array([0, 1, count // 2, count - 1])
    found = sample_at(position, np.full(4, 3), count, derive_key(0, "corpus"))
    assert len(np.unique(found)) == 4 and found.min() >= 0 and found.max() < count
