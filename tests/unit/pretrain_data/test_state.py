"""Which states a stream takes, and what it says about the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data_tools.errors import DataError
from pretrain.config import ConfigError, RunConfig
from pretrain.data import StreamConfig, open_stream
from pretrain.data.token_order import TokenOrder
from tests.unit.pretrain_data.support import run_config

RAMP = {"start": 4, "increment": 4, "samples": 24}


def state_after(config: RunConfig, steps: int) -> dict[str, Any]:
    with open_stream(config) as stream:
        for _ in range(steps):
            next(stream)
        return stream.state_dict()


def load(config: RunConfig, state: Any, world: int = 1) -> int:
    """Load a state and make a step; samples consumed then."""
    with open_stream(config, "train", 0, world) as stream:
        stream.load_state_dict(state)
        next(stream)
        return stream.consumed_samples


@pytest.mark.parametrize("state", [None, [1], "x", {}, 3])
def test_what_is_no_state_is_refused(state, corpora, tmp_path):
    with open_stream(run_config("gpt", tmp_path, corpora)) as stream:
        with pytest.raises(DataError, match="cannot continue the data stream: its state"):
            stream.load_state_dict(state)


@pytest.mark.parametrize(
    "change",
    [
        {"phases": []},
        {"batches": []},
        {"phases": [1]},
        {"batches": [None]},
        {"phases": {}},
        {"fixed": None},
        {"batches": [{"step": 1, "sample": 24, "global_batch_size": 24, "ramp": None}]},
    ],
)
def test_a_damaged_state_is_refused(change, corpora, tmp_path):
    config = run_config("gpt", tmp_path, corpora)
    with pytest.raises(DataError, match="state is damaged"):
        load(config, state_after(config, 1) | change)


@pytest.mark.parametrize(
    ("kind", "before", "now", "named"),
    [
        ("bert", {}, {"data__masking": {"mask_probability": 0.4}}, "data.masking"),
        ("bert", {}, {"data__masking": {"whole_word": False}}, "data.masking"),
        ("bert", {}, {"data__sentence_pairs": "sop"}, "data.sentence_pairs"),
        ("bert", {"data__limit": {"samples": 10}}, {"batch__seq_length": 40}, "data.limit"),
        ("gpt", {}, {"data__packing": "best_fit"}, "data.packing"),
    ],
)
def test_settings_that_decide_what_samples_are_must_stay(kind, before, now, named, corpora, tmp_path):
    state = state_after(run_config(kind, tmp_path, corpora, **before), 1)
    with pytest.raises(DataError, match=f"{named} is .* in this run, .* in the saved state; restore it"):
        load(run_config(kind, tmp_path, corpora, **now), state)


def test_settings_that_do_not_may_change(corpora, tmp_path):
    state = state_after(run_config("gpt", tmp_path, corpora), 1)
    masking = {"mask_probability": 0.4}  # GPT masks nothing
    config = run_config("gpt", tmp_path, corpora, data__eod_mask_loss=True, data__masking=masking)
    assert load(config, state) == 48


def test_a_limit_in_samples_of_another_length_is_refused_with_what_to_do(corpora, tmp_path):
    it = {"it": corpora["first"]}
    state = state_after(run_config("gpt", tmp_path, it, data__limit={"samples": 40}), 1)
    longer = {"batch__seq_length": 64}
    with pytest.raises(DataError, match=r"has 2560 tokens.* 1280 tokens.*data.limit: \{tokens: 1280\}"):
        load(run_config("gpt", tmp_path, it, data__limit={"samples": 40}, **longer), state)
    assert load(run_config("gpt", tmp_path, it, data__limit={"tokens": 1280}, **longer), state) == 48


def test_ranks_that_cannot_share_a_ramp_can_go_on_behind_it(kind, corpora, tmp_path):
    config = run_config(kind, tmp_path, corpora, batch__ramp=RAMP)
    past = state_after(config, 8)
    assert load(config, past, world=6) == past["consumed_samples"] + 24
    with pytest.raises(ConfigError, match=r"batch.ramp: steps of .*16.* = 2 x 6"):
        load(config, state_after(config, 1), world=6)


def test_a_corpus_shorter_than_a_sample_is_told_from_a_short_limit(corpora):
    def opened(length: int, limit: dict[str, int] | None) -> None:
        batch = {"micro_batch_size": 1, "global_batch_size": 1, "seq_length": length}
        corpus = {"name": "it", "path": str(corpora["first"])}
        data = {"corpora": [corpus], "limit": limit}
        open_stream(StreamConfig.model_validate({"kind": "gpt", "batch": batch, "data": data}))

    with pytest.raises(DataError, match="tokens, too few for one sample of batch.seq_length: 60000") as found:
        opened(60_000, None)
    assert "limit" not in str(found.value)
    with pytest.raises(DataError, match="data.limit: 10 tokens are too few for one sample of 32; raise it"):
        opened(32, {"tokens": 10})


def test_a_group_size_that_changes_behind_an_idle_phase_repeats_nothing(corpora, tmp_path, monkeypatch):
    """Phases of 16, 32 (nobody draws from the corpus) and 64 tokens, where groups hold 32."""
    monkeypatch.setattr("pretrain.data.token_order.GROUP_TOKENS", 32)
    monkeypatch.setattr("pretrain.data.token_order.WINDOW_GROUPS", 4)
    seen: dict[int, list[np.ndarray]] = {}
    state = None
    for length, weight, steps in ((16, 1.0, 3), (32, 1e-3, 1), (64, 1.0, 3)):
        config = run_config("gpt", tmp_path, corpora, weights={"second": weight}, batch__seq_length=length)
        with open_stream(config) as stream:
            if state:
                stream.load_state_dict(state)
            first = stream.consumed_samples
            for _ in range(steps):
                next(stream)
            located, state = (
                stream._feed.locate(np.arange(first, stream.consumed_samples)),
                stream.state_dict(),
            )
            mine = located.of_corpus(1)
            assert isinstance(stream._feed.corpora[1].order, TokenOrder)
        assert bool(len(mine.numbers)) == (weight == 1.0)
        if mine.spans:
            for row, start, count in zip(*(column.tolist() for column in mine.spans), strict=True):
                seen.setdefault(int(mine.ids.epoch[row]), []).append(np.arange(start, start + count))
    assert set(seen) == {0, 1}
    for parts in seen.values():
        read = np.concatenate(parts)
        assert len(np.unique(read)) == len(read)
