"""The order of GPT samples: every token once an epoch, also where seq_length changes in the middle of it."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from pretrain.data import token_order
from pretrain.data.philox import derive_key
from pretrain.data.stretches import stretch_from_json, stretch_to_json
from pretrain.data.token_order import GROUP_TOKENS, TokenOrder, TokenStart, group_tokens

KEY = derive_key(3, "corpus")
SMALL_GROUP, SMALL_WINDOW = 64, 4


@pytest.fixture
def small_groups(monkeypatch):
    """Groups of 64 tokens, windows of 4 groups: all cases come up in a few thousand tokens."""
    monkeypatch.setattr(token_order, "GROUP_TOKENS", SMALL_GROUP)
    monkeypatch.setattr(token_order, "WINDOW_GROUPS", SMALL_WINDOW)


def tokens_read(order: TokenOrder, first: int, stop: int) -> list[tuple[int, np.ndarray]]:
    """(epoch, tokens of the corpus) of samples number first..stop-1."""
    epoch, position = order.locate(np.arange(first, stop))
    spans = order.spans(epoch, position)
    samples = [[] for _ in range(stop - first)]
    for row, start, length in zip(*(column.tolist() for column in spans), strict=True):
        assert 0 <= start and length > 0 and start + length <= order.tokens
        samples[row].append(np.arange(start, start + length))
    return [(int(e), np.concatenate(parts)) for e, parts in zip(epoch, samples, strict=True)]


@pytest.mark.parametrize("tokens", [40, 63, 64, 65, 255, 256, 257, 300, 1024, 3001])
@pytest.mark.parametrize("seq_length", [1, 8, 24, 32, 40])
@pytest.mark.parametrize("key", [KEY, None])
def test_each_token_comes_at_most_once_in_an_epoch(tokens, seq_length, key, small_groups):
    order = TokenOrder(tokens, seq_length, key)
    windows = -(-tokens // (SMALL_GROUP * SMALL_WINDOW))
    for epoch in range(3):
        first = epoch * order.epoch_samples
        read = tokens_read(order, first, first + order.epoch_samples)
        assert {e for e, _ in read} == {epoch}
        assert all(len(sample) == seq_length for _, sample in read)
        seen = np.concatenate([sample for _, sample in read])
        assert len(np.unique(seen)) == len(seen)
        assert tokens - len(seen) <= windows * (seq_length - 1)
        if seq_length in (1, 8, 32):  # divides the groups: only the end of the epoch can be left out
            assert tokens - len(seen) < seq_length


def test_a_sample_is_one_range_where_seq_length_divides_the_groups(small_groups):
    order = TokenOrder(3000, 16, KEY)
    spans = order.spans(*order.locate(np.arange(2 * order.epoch_samples)))
    wrapped = np.bincount(spans.row) > 1
    assert wrapped.sum() <= 2 * 2  # the end of the ring, and the short last group, once an epoch


def test_epochs_differ_in_order_and_in_where_samples_begin(small_groups):
    order = TokenOrder(3000, 16, KEY)
    n = order.epoch_samples
    first, second = (order.spans(*order.locate(np.arange(e * n, (e + 1) * n))).start for e in (0, 1))
    assert len({int(start) % 16 for start in np.concatenate([first, second])}) > 1
    assert not np.array_equal(first, second)
    assert (np.diff(first) == 16).mean() < 0.2


def test_storage_order_without_a_key():
    order = TokenOrder(1000, 30, None)
    spans = order.spans(*order.locate(np.arange(40)))
    assert spans.start.tolist() == [30 * (i % 33) for i in range(40)]


def test_the_order_of_a_subset_is_the_order_of_the_whole(small_groups):
    order = TokenOrder(5000, 24, KEY)
    whole = tokens_read(order, 0, 500)
    for n in (0, 77, 210, 499):
        ((epoch, sample),) = tokens_read(order, n, n + 1)
        assert epoch == whole[n][0] and np.array_equal(sample, whole[n][1])


@pytest.mark.parametrize("seed", range(12))
def test_no_token_twice_when_seq_length_changes_in_the_middle_of_epochs(seed, small_groups):
    """Chains of changes: per epoch nothing repeats, and what is left out stays under the stated bound."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(300, 3000))
    seen: dict[int, list[np.ndarray]] = {}
    order = TokenOrder(tokens, int(rng.choice([8, 16, 24, 32])), KEY)
    bound: dict[int, int] = {}
    for _ in range(25):
        epochs = [e for e, _ in tokens_read(order, 0, 1)]
        stop = int(rng.integers(0, 2 * tokens // order.seq_length if rng.random() < 0.2 else 40))
        for epoch, sample in tokens_read(order, 0, stop) if stop else []:
            seen.setdefault(epoch, []).append(sample)
            epochs.append(epoch)
        windows = -(-tokens // (SMALL_GROUP * SMALL_WINDOW))
        for epoch in set(epochs):  # each cut leaves out less than a sample of every window and rest
            bound[epoch] = bound.get(epoch, 0) + 64 + (windows * 32 if epoch not in bound else 0)
        length = int(rng.choice([8, 12, 16, 24, 32, 64]))
        order = TokenOrder(tokens, length, KEY, order.cursor(stop, length))
    last = max(seen)
    for epoch, samples in seen.items():
        read = np.concatenate(samples)
        assert len(np.unique(read)) == len(read), f"epoch {epoch} repeats"
        if epoch < last:
            assert tokens - len(read) <= bound[epoch]
    assert last >= 2


def test_powers_of_two_lose_nothing(small_groups):
    """512 tokens, cut as 8, 32, 16: each token exactly once."""
    order, read = TokenOrder(1024, 8, KEY), []
    for count, length in ((37, 32), (5, 16), (11, 8)):
        read += tokens_read(order, 0, count)
        order = TokenOrder(1024, length, KEY, order.cursor(count, length))
    number = 0
    while (one := tokens_read(order, number, number + 1)[0])[0] == 0:
        read.append(one)
        number += 1
    counts = np.bincount(np.concatenate([sample for _, sample in read]), minlength=1024)
    assert counts.max() == 1
    assert (counts == 0).sum() < 32


def test_windows_that_were_not_begun_come_before_the_rest(small_groups):
    order = TokenOrder(256 * 4, 16, KEY)
    start = order.cursor(21, 32)  # 16 samples a window: five of the second
    kinds = [type(stretch).__name__ for stretch in start.stretches]
    assert kinds == ["Windows", "Rest"]
    again = TokenOrder(1024, 32, KEY, start)
    assert again.passes(0) == pytest.approx(1 - (1024 - 21 * 16) // 32 / 32)
    joined = np.bincount(again.spans(*again.locate(np.arange(16))).row)
    assert joined.max() == 1 or (joined > 1).sum() <= 1  # whole windows: no joins but the ring's end


def test_the_same_seq_length_goes_on_as_if_nothing_had_happened(small_groups):
    order = TokenOrder(3001, 24, KEY)
    whole = tokens_read(order, 0, 400)
    for n in (0, 1, 100, 124, 125, 130, 399):
        again = TokenOrder(3001, 24, KEY, order.cursor(n, 24))
        for ours, theirs in zip(tokens_read(again, 0, 400 - n), whole[n:], strict=True) if n < 400 else []:
            assert ours[0] == theirs[0] and np.array_equal(ours[1], theirs[1])
        assert again.passes(0) == pytest.approx(order.passes(n))


def test_a_longer_group_begins_the_next_epoch(small_groups):
    order = TokenOrder(3000, 64, KEY)
    assert group_tokens(65) == 128
    assert order.cursor(5, 65) == TokenStart(1)
    assert order.cursor(0, 65) == TokenStart(0)


def test_a_longer_group_begins_the_next_epoch_where_only_a_phase_before_read_of_this_one(small_groups):
    begun = TokenOrder(3000, 16, KEY).cursor(40, 32)
    assert begun.epoch == 0 and begun.stretches
    idle = TokenOrder(3000, 32, KEY, begun)
    assert idle.cursor(0, 16) == begun
    assert idle.cursor(0, 65) == idle.cursor(1, 65) == TokenStart(1)
    assert TokenOrder(3000, 65, KEY).cursor(5, 64) == TokenStart(1)


@pytest.mark.parametrize("seed", range(12))
def test_no_token_twice_when_groups_change_too(seed, small_groups):
    """Chains of changes over the group size, where a third of the phases gives no sample of this corpus."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(1000, 4000))
    seen: dict[int, list[np.ndarray]] = {}
    order = TokenOrder(tokens, 16, KEY)
    for _ in range(25):
        stop = int(rng.integers(0, 30)) * int(rng.random() > 0.33)
        for epoch, sample in tokens_read(order, 0, stop) if stop else []:
            seen.setdefault(epoch, []).append(sample)
        length = int(rng.choice([8, 24, 64, 96, 200]))
        order = TokenOrder(tokens, length, KEY, order.cursor(stop, length))
    for epoch, samples in seen.items():
        read = np.concatenate(samples)
        assert len(np.unique(read)) == len(read), f"epoch {epoch} repeats"


def test_starts_survive_json(small_groups):
    order = TokenOrder(3000, 16, KEY)
    for length in (24, 8, 32):
        start = order.cursor(9, length)
        order = TokenOrder(3000, length, KEY, start)
        plain = json.loads(json.dumps([stretch_to_json(stretch) for stretch in start.stretches]))
        assert tuple(stretch_from_json(one) for one in plain) == start.stretches


def test_any_position_of_a_huge_epoch_costs_the_same():
    order = TokenOrder(10**13, 2048, KEY)
    n = order.epoch_samples
    assert n == 10**13 // 2048
    began = time.perf_counter()
    spans = order.spans(*order.locate(np.array([0, 1, n // 2, n - 1, n, 7 * n + 5])))
    assert time.perf_counter() - began < 0.1
    assert len(np.unique(spans.start)) == 6


def test_a_window_reads_whole_groups_from_all_over_the_corpus():
    tokens, window = 40 * GROUP_TOKENS * 512 + 12345, 512 * 64
    order = TokenOrder(tokens, 2048, KEY)
    starts = order.spans(*order.locate(np.arange(window))).start
    runs = int((np.diff(np.sort(starts)) != 2048).sum()) + 1
    assert 450 < runs <= 513
    assert len(np.unique(starts * 40 // tokens)) == 40
    assert np.abs(np.diff(starts)).mean() > tokens / 5  # consecutive samples come from far apart
