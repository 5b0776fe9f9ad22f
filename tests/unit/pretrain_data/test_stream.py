from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest

from pretrain.data import Stream, eval_batches, open_stream
from pretrain.data import stream as stream_module
from tests.unit.pretrain_data.support import raw_stream, run_config, write_corpus

GLOBAL_BATCH = 24
SHAPES_GPT = {"tokens": "int64", "labels": "int64", "loss_mask": "float32"}
SHAPES_BERT = {
    "tokens": "int64",
    "token_types": "int64",
    "padding_mask": "bool",
    "masked_positions": "int64",
    "masked_labels": "int64",
    "next_sentence_labels": "int64",
}


def join(steps: list[list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """One global batch from the steps of all ranks: rows in order, masked positions counted over all rows."""
    micro_batches = [batch for step in steps for batch in step]
    joined = {}
    for name in micro_batches[0]:
        if name == "masked_positions":
            sizes = np.cumsum([0, *(batch["tokens"].size for batch in micro_batches)])
            parts = [batch[name] + size for batch, size in zip(micro_batches, sizes, strict=False)]
        else:
            parts = [batch[name] for batch in micro_batches]
        joined[name] = np.concatenate(parts)
    return joined


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype and np.array_equal(array, theirs[name]), name


def open_ranks(config, world: int, state=None) -> list[Stream]:
    streams = [open_stream(config, "train", rank, world) for rank in range(world)]
    for stream in streams:
        if state is not None:
            stream.load_state_dict(state)
    return streams


def take(streams: list[Stream], steps: int) -> list[dict[str, np.ndarray]]:
    return [join([next(stream) for stream in streams]) for _ in range(steps)]


def close(streams: list[Stream]) -> None:
    for stream in streams:
        stream.close()


def test_micro_batches_have_the_promised_shapes(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora)
    with open_stream(config, "train", 1, 3) as stream:
        step = next(stream)
    assert len(step) == 24 // 3 // 2
    expected = SHAPES_GPT if kind == "gpt" else SHAPES_BERT
    for batch in step:
        assert {name: str(array.dtype) for name, array in batch.items()} == expected
        assert batch["tokens"].shape == (2, 32)
        if kind == "bert":
            assert batch["next_sentence_labels"].shape == (2,)
            positions = batch["masked_positions"]
            assert positions.shape == batch["masked_labels"].shape and (np.diff(positions) > 0).all()
            assert batch["padding_mask"].ravel()[positions].all()


@pytest.mark.parametrize("names", [["first"], ["first", "second"]])
def test_global_batches_do_not_depend_on_the_world(kind, names, corpora, tmp_path, monkeypatch):
    config = run_config(kind, tmp_path, {name: corpora[name] for name in names}, weights={"second": 0.3})
    streams = open_ranks(config, 1)
    expected = take(streams, 12)
    close(streams)
    monkeypatch.setattr(stream_module, "LOCATE_SAMPLES", 20)  # so that the 12 steps are located in parts
    for world, micro_batch_size in ((2, 3), (3, 8), (4, 1), (6, 2)):
        again = run_config(
            kind,
            tmp_path,
            {name: corpora[name] for name in names},
            weights={"second": 0.3},
            batch__micro_batch_size=micro_batch_size,
        )
        streams = open_ranks(again, world)
        for ours, theirs in zip(take(streams, 12), expected, strict=True):
            assert_same(ours, theirs)
        close(streams)


def test_chains_of_stops_equal_the_uninterrupted_run(kind, corpora, tmp_path):
    """Random stops with a changed world each time; prefetched steps are lost and must come again."""
    config = run_config(kind, tmp_path, corpora, weights={"second": 0.4})
    streams = open_ranks(config, 1)
    expected = take(streams, 40)
    close(streams)
    rng = np.random.default_rng(4)
    state, done = None, 0
    while done < 40:
        streams = open_ranks(config, int(rng.choice([1, 2, 3, 4, 6])), state)
        saved_at = None
        for step in range(done, min(40, done + int(rng.integers(1, 9)))):
            (batch,) = take(streams, 1)
            assert_same(batch, expected[step])
            if rng.random() < 0.7 or saved_at is None:  # a crash goes back to an older state
                states = [json.loads(json.dumps(stream.state_dict())) for stream in streams]
                assert all(other == states[0] for other in states)
                state, saved_at = states[0], step + 1
        done = saved_at
        close(streams)
    assert streams[0].epochs()["first"] > 2


def test_each_sample_comes_once_in_each_epoch(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora, weights={"second": 0.3})
    with open_stream(config, "train", 0, 1) as stream:
        feed = stream._feed
    assert len({corpus.key for corpus in feed.corpora}) == 2  # each corpus has an order of its own
    total = 5000
    located = feed.locate(np.arange(total))
    for index, size in enumerate(feed.sizes):
        mine = located.corpus == index
        assert size % 32 and int(mine.sum()) > 2 * size
        for epoch in range(int(mine.sum()) // int(size)):
            samples = located.ids.sample[mine & (located.ids.epoch == epoch)]
            assert np.array_equal(np.sort(samples), np.arange(size))


def test_a_gpt_epoch_is_the_whole_corpus(corpora, tmp_path):
    """Through every layer: the labels of an epoch are the corpus, less what is too short for a sample."""
    config = run_config(
        "gpt", tmp_path, {"first": corpora["first"]}, batch__global_batch_size=1, batch__micro_batch_size=1
    )
    stream = raw_stream(corpora["first"] / "train")
    with open_stream(config, "train", 0, 1) as steps:
        rows = [next(steps)[0] for _ in range(len(stream) // 32)]
        assert steps.epochs() == {"first": 1.0}
    tokens = np.stack([row["tokens"][0] for row in rows])
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([stream, stream[:32]]), 33)
    starts = [int(np.flatnonzero((windows[:, :32] == row).all(axis=1))[0]) for row in tokens]
    assert len(set(starts)) == len(starts) and len({start % 32 for start in starts}) <= 2
    for row, start in zip(rows, starts, strict=True):
        assert np.array_equal(row["labels"][0], windows[start, 1:])
    assert starts != sorted(starts)


def test_state_is_small_and_counts_only_what_was_handed_out(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora)
    with open_stream(config, "train", 0, 2) as stream:
        assert stream.state_dict()["consumed_samples"] == stream.consumed_samples == 0
        next(stream)
        time.sleep(0.2)  # lets the thread run ahead
        state = stream.state_dict()
        assert state["consumed_samples"] == stream.consumed_samples == 24
        assert len(json.dumps(state)) < 1024
        after = [next(stream) for _ in range(3)]
        stream.load_state_dict(state)  # back, in the middle of iteration
        for ours, theirs in zip([next(stream) for _ in range(3)], after, strict=True):
            assert_same(join([ours]), join([theirs]))


def test_a_far_state_loads_at_once(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora)
    with open_stream(config, "train", 0, 1) as stream:
        state = {**stream.state_dict(), "consumed_samples": 24 * 10**11}
        began = time.perf_counter()
        stream.load_state_dict(state)
        next(stream)
        assert time.perf_counter() - began < 10
        assert stream.consumed_samples == 24 * 10**11 + 24


def test_the_global_batch_size_may_change_between_runs(corpora, tmp_path):
    small, large = (run_config("gpt", tmp_path, corpora, batch__global_batch_size=size) for size in (24, 48))
    with open_stream(small, "train", 0, 1) as stream:
        first = [next(stream) for _ in range(3)]
        expected = join([step for step in first[1:]])
        state = {**stream.state_dict(), "consumed_samples": 24}
    with open_stream(large, "train", 0, 1) as stream:
        stream.load_state_dict(state)
        assert_same(join([next(stream)]), expected)


def test_validation_is_fixed(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora)
    expected = [join([step]) for step in eval_batches(config, 0, 1)]
    assert 1 <= len(expected) <= 60 // 24
    other_seed = run_config(kind, tmp_path, corpora, seed=99)
    for ours, theirs in zip(eval_batches(other_seed, 0, 1), expected, strict=True):
        assert_same(join([ours]), theirs)
    by_rank = [eval_batches(config, rank, 3) for rank in range(3)]
    for ours, theirs in zip(zip(*by_rank, strict=True), expected, strict=True):
        assert_same(join(list(ours)), theirs)


def test_validation_is_the_beginning_of_the_split(corpora, tmp_path):
    config = run_config("gpt", tmp_path, {"first": corpora["first"]}, training__eval_samples=50)
    steps = eval_batches(config, 0, 1)
    tokens = np.concatenate([join([step])["tokens"] for step in steps])
    stream = raw_stream(corpora["first"] / "validation")
    assert tokens.shape == (min(50, len(stream) // 32) // 24 * 24, 32)
    assert np.array_equal(tokens.ravel(), stream[: tokens.size])


def test_a_small_validation_split_fills_one_batch(tokenizer, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", tokenizer, seed=5, documents=20, validation=2)
    (step,) = eval_batches(run_config("gpt", tmp_path, {"small": corpus}), 0, 1)
    stream = raw_stream(corpus / "validation")
    count = len(stream) // 32
    assert count < 24
    assert np.array_equal(join([step])["tokens"], np.resize(stream[: count * 32], (24, 32)))


def threads() -> int:
    return sum(thread.name == "headwater-prefetch" for thread in threading.enumerate())


def open_shards() -> list[str]:
    names = (os.path.realpath(entry) for entry in os.scandir("/proc/self/fd"))
    return sorted(name for name in names if name.endswith(".tar"))


def test_nothing_stays_behind(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora)
    descriptors, running = open_shards(), threads()
    for _ in range(3):
        stream = open_stream(config, "train", 0, 1)
        next(stream)
        assert threads() == running + 1
        stream.close()
        stream.close()
        with pytest.raises(ValueError, match="closed"):
            next(stream)
        eval_batches(config, 0, 1)
    abandoned = open_stream(config, "train", 0, 1)
    next(abandoned)
    del abandoned
    gc.collect()
    assert threads() == running
    assert open_shards() == descriptors


def test_the_cache_lies_in_the_run_directory_or_where_asked(corpora, tmp_path):
    config = run_config("bert", tmp_path / "run", {"it": corpora["first"]})
    open_stream(config, "train", 0, 1).close()
    assert list((tmp_path / "run" / "data_cache").glob("pairs-*"))
    shutil.rmtree(tmp_path / "run")
    open_stream(config, "train", 0, 1, cache=tmp_path / "elsewhere").close()
    assert list((tmp_path / "elsewhere").glob("pairs-*")) and not (tmp_path / "run").exists()
