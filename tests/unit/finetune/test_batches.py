"""Examples, the training stream and the evaluation set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from finetune.batches import IGNORED_LABEL, Examples, ExampleStream, evaluation_batches
from pretrain.data.steps import RankPlan


def examples(count):
    """Example i is recognised by its label i; lengths differ."""
    return of([[2, *[7 + i] * (1 + i % 4), 3] for i in range(count)], range(count))


def of(tokens, labels):
    arrays = [np.array(t, np.int32) for t in tokens]
    return Examples(
        sequences={"tokens": arrays, "token_types": [np.zeros_like(t) for t in arrays]},
        fill={"tokens": 0, "token_types": 0},
        targets={"labels": np.array(labels)},
        rows=np.arange(len(arrays)),
    )


def stream(count=10, global_batch=4, micro_batch=2, rank=0, size=1, seed=1):
    return ExampleStream(examples(count), RankPlan(global_batch, micro_batch, rank, size), seed)


def labels(step):
    return [label for batch in step for label in batch["labels"].tolist()]


def take(stream, steps):
    return [label for _ in range(steps) for label in labels(next(stream))]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 200), batch=st.integers(1, 16), seed=st.integers(0, 9))
def test_every_epoch_has_every_example_exactly_once(count, batch, seed):
    epochs = 3
    seen = take(stream(count, batch, 1, seed=seed), -(-count * epochs // batch))
    for epoch in range(epochs):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_have_other_orders():
    first = take(stream(100, 50, 50), 4)
    assert first[:100] != first[100:] and first[:100] != sorted(first[:100])
    assert first != take(stream(100, 50, 50, seed=2), 4)
    assert first == take(stream(100, 50, 50), 4)


def test_the_last_batch_of_an_epoch_rolls_into_the_next():
    reader = stream(count=10, global_batch=4, micro_batch=2)
    steps = [next(reader) for _ in range(5)]
    assert all(len(labels(step)) == 4 for step in steps)
    assert sorted(label for step in steps for label in labels(step)) == sorted([*range(10)] * 2)
    assert reader.epochs() == {"train": 2.0}


@settings(max_examples=30, deadline=None)
@given(size=st.sampled_from([1, 2, 4]), micro_batch=st.sampled_from([1, 2]), steps=st.integers(1, 9))
def test_global_batches_do_not_depend_on_the_layout(size, micro_batch, steps):
    readers = [stream(13, 8, micro_batch, rank, size) for rank in range(size)]
    whole = stream(13, 8, 8)
    for _ in range(steps):
        assert [label for reader in readers for label in labels(next(reader))] == labels(next(whole))


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(0, 20), size=st.sampled_from([1, 2]))
def test_it_goes_on_where_the_state_was_saved(steps, size):
    whole = stream(13, 4, 1)
    take(whole, steps)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = [stream(13, 4, 2, rank, size) for rank in range(size)]
    for reader in resumed:
        reader.load_state_dict(state)
    assert [label for reader in resumed for label in labels(next(reader))] == labels(next(whole))


def test_a_state_of_other_data_or_another_seed_is_refused():
    state = stream().state_dict()
    for other in (stream(seed=2), stream(count=11)):
        with pytest.raises(DataError, match="cannot continue this run"):
            other.load_state_dict(state)
    assert len(json.dumps(state)) < 1000


def test_the_fingerprint_sees_tokens_labels_and_where_texts_end():
    base = of([[2, 8], [3]], [0, 1]).fingerprint
    assert base == of([[2, 8], [3]], [0, 1]).fingerprint
    others = [of([[2], [8, 3]], [0, 1]), of([[2, 9], [3]], [0, 1]), of([[2, 8], [3]], [1, 1])]
    assert len({base, *(other.fingerprint for other in others)}) == 4


def test_a_batch_is_padded_to_its_longest():
    batch = examples(4).micro_batch([3, 0])
    assert batch["tokens"].tolist() == [[2, 10, 10, 10, 10, 3], [2, 7, 3, 0, 0, 0]]
    assert batch["padding_mask"].tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert batch["tokens"].dtype == np.int64 and batch["padding_mask"].dtype == np.bool_
    assert not batch["token_types"].any() and batch["token_types"].shape == (2, 6)
    assert batch["labels"].tolist() == [3, 0]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 40), micro_batch=st.integers(1, 5), size=st.integers(1, 4))
def test_evaluation_covers_every_example_once_in_equally_many_calls(count, micro_batch, size):
    plans = [RankPlan(micro_batch * size, micro_batch, rank, size) for rank in range(size)]
    ranks = [list(evaluation_batches(examples(count), plan)) for plan in plans]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [
        (number, label)
        for batches in ranks
        for numbers, batch in batches
        for number, label in zip(numbers.tolist(), batch["labels"].tolist(), strict=True)
    ]
    assert sorted(pair for pair in seen if pair[1] != IGNORED_LABEL) == [(i, i) for i in range(count)]
    assert all(number >= count for number, label in seen if label == IGNORED_LABEL)


def test_what_fills_an_evaluation_has_no_target_of_any_kind():
    arrays = [np.array([1, 2], np.int32)]
    data = Examples(
        sequences={"tokens": arrays, "tags": arrays, "loss_mask": [np.ones(2, np.float32)]},
        fill={"tokens": 0, "tags": IGNORED_LABEL, "loss_mask": 0},
        targets={"labels": np.ones((1, 3), np.float32)},
        rows=np.arange(1),
    )
    batch = data.filled_micro_batch(np.array([0, 1]))
    assert (
        batch["tags"].tolist() == [[1, 2], [IGNORED_LABEL] * 2] and batch["tokens"].tolist() == [[1, 2]] * 2
    )
    assert batch["loss_mask"].tolist() == [[1, 1], [0, 0]]
    assert np.isnan(batch["labels"]).tolist() == [[False] * 3, [True] * 3]
