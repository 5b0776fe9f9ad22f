"""Trainings that stop and crash thirty times, each time going on with other ranks: as if they never had."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pretrain.data import open_stream
from pretrain.data.state import StreamState
from pretrain.data.walk import walk
from tests.unit.pretrain_data.support import run_config, write_corpus
from tests.unit.pretrain_data.test_stream import assert_same, close, join, open_ranks

WORLDS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]
STOPS = 30


def uninterrupted(configs: list[Any], boundaries: list[int]) -> tuple[list[dict], dict]:
    """Global batch of every step, from one rank that stops only where the config changes; last state."""
    batches, state = [], None
    for config, end in zip(configs, boundaries, strict=True):
        with open_stream(config) as stream:
            if state is not None:
                stream.load_state_dict(state)
            batches += [join([next(stream)]) for _ in range(end - len(batches))]
            state = json.loads(json.dumps(stream.state_dict()))
    return batches, state


def chain(configs: list[Any], boundaries: list[int], expected: list[dict], seed: int) -> dict:
    """Stop and crash on the way from step 0 to the end; every global batch must be the expected one."""
    rng = np.random.default_rng(seed)
    state, done, stops, worlds = None, 0, 0, set()
    while done < boundaries[-1]:
        part = sum(done >= end for end in boundaries)
        config = configs[part]
        world = int(rng.choice(WORLDS)) if stops % 2 else WORLDS[stops // 2 % len(WORLDS)]
        worlds.add(world)
        settings = {"prefetch_steps": int(rng.integers(0, 4))}
        mixed = config.model_copy(update={"data": config.data.model_copy(update=settings)})
        streams = open_ranks(mixed, world, state)
        planned = min(boundaries[part], done + int(rng.integers(1, 3)))
        crash = rng.random() < 0.4 and planned - done > 1
        for step in range(done, planned):
            assert_same(join([next(stream) for stream in streams]), expected[step])
            if not crash or step == done:  # a crash goes back to what was saved before
                states = [json.loads(json.dumps(stream.state_dict())) for stream in streams]
                assert all(other == states[0] for other in states)
                state, saved = states[0], step + 1
        close(streams)
        done, stops = saved, stops + 1
    assert stops >= STOPS and worlds == set(WORLDS)
    return state


def assert_once_an_epoch(state: dict, epochs: int) -> None:
    """Walk the order of a finished training: complete epochs are whole, nothing is in one of them twice."""
    facts, problems = walk(StreamState.from_json(state))
    assert problems == []
    assert len(facts) >= epochs


KINDS = pytest.mark.parametrize("kind", ["gpt", pytest.param("bert", marks=pytest.mark.slow)])


@KINDS
@pytest.mark.parametrize("names", [["first"], ["first", "second"]])
def test_thirty_stops(kind, names, corpora, tmp_path):
    config = run_config(
        kind,
        tmp_path,
        {name: corpora[name] for name in names},
        weights={"second": 0.37},
        batch__global_batch_size=48,
        batch__micro_batch_size=1,
    )
    expected, last = uninterrupted([config], [48])
    sizes = [c.get("samples", c.get("tokens", 0) // 32) for c in last["phases"][0]["corpora"]]
    assert all(size % 48 for size in sizes)
    assert chain([config], [48], expected, seed=len(names)) == last
    assert_once_an_epoch(last, epochs=8)


@KINDS
def test_thirty_stops_with_phases(kind, corpora, tokenizer, tmp_path):
    """Weights, lengths, batch sizes with a ramp, a corpus that begins and one that ends."""
    third = {"third": write_corpus(tmp_path / "third", tokenizer, seed=4)}
    first = {"first": corpora["first"]}
    ramp = {"start": 48, "increment": 48, "samples": 2000}
    changes: list[tuple[dict, dict]] = [
        (dict(corpora), {}),
        (dict(corpora), {"weights": {"second": 0.2}}),
        (corpora | third, {"batch__seq_length": 16, "weights": {"third": 2.0}}),
        (first | third, {"batch__seq_length": 64, "batch__global_batch_size": 96}),
        (first | third, {"batch__seq_length": 24, "batch__global_batch_size": 144, "batch__ramp": ramp}),
    ]
    configs = [
        run_config(
            kind, tmp_path, names, **{"batch__global_batch_size": 48, "batch__micro_batch_size": 1} | more
        )
        for names, more in changes
    ]
    boundaries = [9, 20, 31, 38, 48]
    expected, last = uninterrupted(configs, boundaries)
    assert len({len(batch["tokens"]) for batch in expected}) >= 3
    assert chain(configs, boundaries, expected, seed=5) == last
    assert len(last["phases"]) == 5 and len(json.dumps(last)) < 6000
    assert_once_an_epoch(last, epochs=5)
