"""A training that goes on with other weights, corpora, lengths or batch sizes, and ramps."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.shard_format import load_manifest
from pretrain.config import ConfigError
from pretrain.config.ramp import batch_size_at, batch_stages
from pretrain.config.schema import BatchConfig, PretrainBatchConfig, RampConfig
from pretrain.config.validate import problems_of
from pretrain.data import open_stream
from pretrain.data.order import IndexOrder, IndexStart
from tests.unit.pretrain_data.support import run_config, write_corpus


def go_on(config, state, steps: int, world: int = 1):
    """Continue a training for some steps; its state, and the samples read as (corpus, epoch, sample)."""
    with open_stream(config, "train", 0, world) as stream:
        if state is not None:
            stream.load_state_dict(state)
        first = stream.consumed_samples
        for _ in range(steps):
            next(stream)
        feed, last = stream._feed, stream.consumed_samples
        located = feed.locate(np.arange(first, last))
        names = [feed.corpora[i].share.name for i in located.corpus]
        eaten = list(zip(names, located.ids.epoch.tolist(), located.ids.sample.tolist(), strict=True))
        return json.loads(json.dumps(stream.state_dict())), eaten


def assert_dense(eaten, skipped=()) -> None:
    """Per corpus: epochs one after the other, no sample of an epoch twice."""
    assert max(Counter(eaten).values()) == 1
    for name in {name for name, _, _ in eaten}:
        epochs = [epoch for one, epoch, _ in eaten if one == name]
        assert epochs == sorted(epochs)
        assert set(epochs) | set(skipped) >= set(range(max(epochs) + 1))


def test_other_weights_go_on_in_every_corpus(kind, corpora, tmp_path):
    state, eaten = None, []
    for weight, steps in ((0.3, 5), (2.0, 7), (0.7, 9)):
        config = run_config(kind, tmp_path, corpora, weights={"second": weight})
        state, read = go_on(config, state, steps)
        share = sum(name == "second" for name, _, _ in read) / len(read)
        assert share == pytest.approx(weight / (1 + weight), abs=0.1)
        eaten += read
    assert_dense(eaten)
    assert [phase["first_sample"] for phase in state["phases"]] == [0, 120, 288]
    # Both corpora without a gap: what the two gave is all of the epochs that are complete.
    sizes = {c["name"]: c.get("samples", c.get("tokens", 0) // 32) for c in state["phases"][0]["corpora"]}
    for name, size in sizes.items():
        complete = max(epoch for one, epoch, _ in eaten if one == name)
        per_epoch = Counter(epoch for one, epoch, _ in eaten if one == name)
        assert all(per_epoch[epoch] == size for epoch in range(complete))


def test_corpora_come_and_go_and_come_back(kind, corpora, tokenizer, tmp_path):
    third = {"third": write_corpus(tmp_path / "third", tokenizer, seed=4)}
    one = {"first": corpora["first"]}
    state, eaten = None, []
    for names, steps in ((one, 3), (one | third, 4), (third, 2), (corpora, 5), (one | third, 6)):
        state, read = go_on(run_config(kind, tmp_path, names), state, steps)
        assert {name for name, _, _ in read} == set(names)
        eaten += read
    assert_dense(eaten)
    assert len(state["phases"]) == 5
    assert len(json.dumps(state)) < 4096


def test_the_same_data_is_no_new_phase(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora, weights={"second": 0.3})
    whole, eaten = go_on(config, None, 8)
    state, first = go_on(config, None, 3)
    turned = dict(reversed(corpora.items()))
    state, second = go_on(run_config(kind, tmp_path, turned, weights={"second": 0.3}), state, 5)
    assert state == whole and first + second == eaten


def test_a_phase_that_was_not_begun_leaves_no_trace(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora)
    start, _ = go_on(config, None, 3)
    for change in ({"weights": {"second": 3.0}}, {"batch__seq_length": 16}, {"batch__global_batch_size": 48}):
        changed, _ = go_on(run_config(kind, tmp_path, corpora, **change), start, 0)
        assert changed != start
        back, eaten = go_on(config, changed, 4)
        assert (back, eaten) == go_on(config, start, 4)
    fresh, _ = go_on(run_config(kind, tmp_path, corpora, weights={"second": 3.0}), None, 0)
    assert go_on(config, fresh, 4) == go_on(config, None, 4)


def test_another_length_reads_the_rest_of_the_epoch(corpora, tmp_path):
    """GPT: tokens of an epoch come once, whatever the lengths they were cut to."""
    state, seen = None, Counter()
    for length, steps in ((32, 2), (16, 3), (64, 1), (32, 6)):
        config = run_config("gpt", tmp_path, {"it": corpora["first"]}, batch__seq_length=length)
        with open_stream(config) as stream:
            if state is not None:
                stream.load_state_dict(state)
            first, tokens = stream.consumed_samples, stream.consumed_tokens
            for _ in range(steps):
                next(stream)
            located = stream._feed.locate(np.arange(first, stream.consumed_samples))
            assert stream.consumed_tokens - tokens == length * (stream.consumed_samples - first)
            for row, start, n in zip(*(column.tolist() for column in located.spans), strict=True):
                seen.update((int(located.ids.epoch[row]), t) for t in range(start, start + n))
            state = json.loads(json.dumps(stream.state_dict()))
    assert max(seen.values()) == 1
    total = load_manifest(corpora["first"] / "train").tokens
    first_epoch = sum(epoch == 0 for epoch, _ in seen)
    assert {epoch for epoch, _ in seen} >= {0, 1}
    assert total - 4 * 64 < first_epoch <= total


def test_another_length_of_sentence_pairs_begins_the_next_epoch(corpora, tmp_path):
    """BERT: other lengths are other pairs, so the epoch ends early; what was read is not read again in it."""
    config = run_config("bert", tmp_path, {"it": corpora["first"]})
    state, first = go_on(config, None, 2)
    longer = run_config("bert", tmp_path, {"it": corpora["first"]}, batch__seq_length=64)
    state, second = go_on(longer, state, 2)
    assert {epoch for _, epoch, _ in first} == {0} and {epoch for _, epoch, _ in second} == {1}
    assert state["phases"][1]["corpora"][0]["start"] == {"epoch": 1, "done": 0}
    assert IndexOrder(10, None, IndexStart(2, 5)).cursor(15, same_samples=False) == IndexStart(4, 0)


def test_batch_sizes_do_not_change_the_order(kind, corpora, tmp_path):
    expected = go_on(run_config(kind, tmp_path, corpora), None, 12)[1]
    state, eaten = None, []
    for size, steps in ((24, 2), (48, 3), (6, 4), (12, 5)):
        config = run_config(kind, tmp_path, corpora, batch__global_batch_size=size)
        state, read = go_on(config, state, steps)
        assert len(read) == size * steps
        eaten += read
    assert eaten == expected[: len(eaten)]
    assert [(plan["step"], plan["sample"]) for plan in state["batches"]] == [
        (0, 0),
        (2, 48),
        (5, 192),
        (9, 216),
    ]
    assert len(state["phases"]) == 1


RAMP = {"start": 6, "increment": 6, "samples": 60}


def test_a_ramp_is_megatrons(corpora, tmp_path):
    """Against the rule of Megatron-LM's RampupBatchsizeNumMicroBatchesCalculator, walked step by step."""
    config = run_config("gpt", tmp_path, corpora, batch__ramp=RAMP)
    consumed, sizes = 0, []
    while consumed < 300:
        per_increment = 60 / ((24 - 6) / 6)
        size = 24 if consumed > 60 else min(24, 6 + int(consumed / per_increment) * 6)
        sizes.append(size)
        consumed += size
    with open_stream(config) as stream:
        for size in sizes:
            before = stream.consumed_samples
            step = next(stream)
            assert sum(len(batch["tokens"]) for batch in step) == size == stream.consumed_samples - before
    assert batch_stages(config.batch)[-1].size == 24 and len({*sizes}) == 4


@pytest.mark.parametrize("seed", range(5))
def test_stages_are_the_pure_function_of_the_sample(seed):
    rng = np.random.default_rng(seed)
    start, increment = (int(n) for n in rng.integers(1, 20, 2))
    full = start + increment * int(rng.integers(1, 9))
    ramp = RampConfig(start=start, increment=increment, samples=int(rng.integers(1, 3000)))
    batch = PretrainBatchConfig(micro_batch_size=1, global_batch_size=full, seq_length=8, ramp=ramp)
    stages = batch_stages(batch)
    sample = 0
    for step in range(400):
        stage = max(one for one in stages if one.step <= step)
        assert stage.size == batch_size_at(batch, sample)
        assert stage.sample + (step - stage.step) * stage.size == sample
        sample += stage.size
    assert batch_stages(BatchConfig(micro_batch_size=1, global_batch_size=4, seq_length=8)) == [(0, 0, 4)]


def test_a_ramp_goes_on_where_it_was_at_another_world(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora, batch__ramp=RAMP, batch__micro_batch_size=1)
    whole = go_on(config, None, 12)
    state, eaten = None, []
    for world, steps in ((1, 2), (3, 1), (6, 4), (2, 5)):
        state, read = go_on(config, state, steps, world)
        eaten += read
    assert (state, eaten) == whole


def test_every_size_that_ranks_cannot_share_is_named(corpora, tmp_path):
    config = run_config("gpt", tmp_path, corpora, batch__ramp=RAMP, batch__micro_batch_size=2)
    assert problems_of(config, 1) == problems_of(config) == []
    (problem,) = problems_of(config, 2)
    assert (
        "2 of its 4 batch sizes" in problem
        and "(2 ranks / TP 1): 6, 18; where the training is past" in problem
    )
    with open_stream(config, "train", 0, 2) as stream:
        with pytest.raises(ConfigError, match="batch.ramp: steps of 6, 18 samples are to come.* = 2 x 2;"):
            next(stream)
    bad = run_config("gpt", tmp_path, corpora, batch__ramp={**RAMP, "increment": 5})
    assert "does not grow" in problems_of(bad)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "format 1, this version reads 2"),
        ({"consumed_samples": 25}, "consumed_samples is 25, within a step of 24"),
        ({"phases": [{}]}, "damaged"),
        ({"split": "validation"}, "split is 'train' in this run, 'validation'"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message, corpora, tmp_path):
    config = run_config("gpt", tmp_path, corpora)
    state, _ = go_on(config, None, 1)
    with open_stream(config) as stream, pytest.raises(DataError, match=message):
        stream.load_state_dict(state | change)


def test_what_cannot_go_on_is_refused(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, {"it": corpora["first"]})
    state, _ = go_on(config, None, 1)
    limited = run_config(kind, tmp_path, {"it": corpora["first"]}, data__limit={"samples": 30})
    with pytest.raises(DataError, match="restore data.limit|data.limit is .* restore it"):
        go_on(limited, state, 1)
    other = run_config("bert" if kind == "gpt" else "gpt", tmp_path, {"it": corpora["first"]})
    with pytest.raises(DataError, match="kind is"):
        go_on(other, state, 1)


@pytest.mark.parametrize("limit", [{"samples": 30}, {"tokens": 1000}])
def test_a_limit_uses_the_beginning_of_each_corpus(kind, limit, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora, data__limit=limit)
    state, eaten = go_on(config, None, 10)
    for corpus in state["phases"][0]["corpora"]:
        if "samples" in limit:
            assert corpus.get("samples", corpus.get("tokens", 0) // 32) == 30
        elif kind == "gpt":
            assert corpus["tokens"] == 1000
    assert_dense(eaten)
    assert max(epoch for _, epoch, _ in eaten) >= 2
    with pytest.raises(DataError, match="data.limit"):
        go_on(run_config("gpt", tmp_path, corpora, data__limit={"tokens": 31}), None, 1)
    both = run_config(kind, tmp_path, corpora, data__limit={"samples": 1, "tokens": 1})
    assert any(re.search("data.limit: give either", text) for text in problems_of(both))
