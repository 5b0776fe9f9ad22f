"""One training in many attempts, each on another layout: it reads what an undisturbed one reads, once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_tools.shard_format import load_manifest
from pretrain.data.audit import audit_run
from pretrain.data.ledger import read_ledger
from pretrain.data.trace import trace_step
from tests.support.ranks import RankPool
from tests.support.training import Layout, tiny_config

RANKS = 4
ATTEMPTS = [(1, 3, False), (4, 5, True), (2, 6, False), (1, 8, True), (2, 11, False), (4, 14, False)]
"""Tensor-parallel size, last step, and whether its checkpoint is lost, as in a crash."""
CHANGE = 8
"""After this step batches ramp up and samples are shorter."""

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(RANKS) as ranks:
        yield ranks


def settings(kind: str, corpus: Path, run_dir: Path, tp: int, steps: int) -> dict[str, Any]:
    """A run as a mapping; from step CHANGE on with other batches and lengths."""
    config = tiny_config(kind, Layout(tp=tp), str(run_dir)).model_dump(mode="json")
    late = steps > CHANGE
    config["batch"] = {
        "micro_batch_size": 1,
        "global_batch_size": 16 if late else 8,
        "seq_length": 24 if late else 32,
        "ramp": {"start": 8, "increment": 4, "samples": 100} if late else None,
    }
    config["data"] = {"corpora": [{"name": "corpus", "path": str(corpus)}]}
    config["checkpoint"] = {"save_interval": 100, "keep_last": 9}
    config["training"] = {"train_steps": steps, "log_interval": 1}
    config["schedule"] = {"kind": "constant"}
    return config


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("kind", ["gpt"])  # BERT's chain runs in tests/unit/pretrain_data/test_chain.py
def test_a_chain_of_layouts_reads_what_one_layout_reads(
    kind: str, corpus: Path, pool: RankPool, tmp_path: Path
) -> None:
    whole, chained = tmp_path / "whole", tmp_path / "chained"
    for steps in (CHANGE, 14):
        assert (
            pool.run("tests.support.data_chain:attempt", config=settings(kind, corpus, whole, 2, steps))
            == [0] * 4
        )
    for tp, steps, lost in ATTEMPTS:
        config = settings(kind, corpus, chained, tp, steps)
        assert pool.run("tests.support.data_chain:attempt", config=config) == [0] * RANKS
        if lost:
            shutil.rmtree(chained / "checkpoints" / f"step-{steps:08d}")
            if steps == CHANGE:  # the change must come where it came in the other run
                config = settings(kind, corpus, chained, 2, steps)
                assert pool.run("tests.support.data_chain:attempt", config=config) == [0] * RANKS
    assert losses(chained) == pytest.approx(losses(whole), rel=2e-3)
    for run_dir in (whole, chained):
        report = audit_run(run_dir)
        assert report.problems == [], report
    assert len(read_ledger(chained)) == len(ATTEMPTS) + 1
    for step in range(1, 15):
        ours, theirs = (sorted(_what(run_dir, step)) for run_dir in (chained, whole))
        assert ours == theirs
    sizes = [len(_what(chained, step)) for step in range(8, 15)]
    assert sizes == [8, 12, 12, 12, 16, 16, 16]  # the ramp counts the 64 samples before it


def test_what_a_damaged_block_cost_is_in_metrics_and_ledger(
    corpus: Path, pool: RankPool, tmp_path: Path
) -> None:
    damaged, run_dir, steps = tmp_path / "corpus", tmp_path / "run", 4
    shutil.copytree(corpus, damaged)
    manifest = load_manifest(damaged / "train")
    with manifest.shard_path(int(manifest.blocks[-1]["shard"])).open("r+b") as shard:
        shard.seek(int(manifest.blocks[-1]["offset"]))
        first = shard.read(1)[0]
        shard.seek(-1, 1)
        shard.write(bytes([first ^ 1]))
    config = settings("gpt", damaged, run_dir, 2, steps)
    config["data"]["on_bad_block"] = "skip"
    assert pool.run("tests.support.data_chain:attempt", config=config) == [0] * RANKS
    traced = [sample for step in range(1, steps + 1) for sample in trace_step(run_dir, step)]
    skipped = [sample for sample in traced if sample.left_out]
    assert 0 < len(skipped) < len(traced) and {sample.rank for sample in skipped} == {0, 1}
    expected = {"data/skipped_samples": len(skipped), "data/skipped_blocks": 1}
    for name in ("metrics.jsonl", "ledger.jsonl"):
        rows = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
        last = next(row for row in reversed(rows) if "data/skipped_samples" in row)
        assert last["step"] == steps and last | expected == last, name
    report = audit_run(run_dir)
    assert report.problems == []
    assert any(fact.startswith(f"{len(skipped)} samples of 1 damaged blocks") for fact in report.facts)


def _what(run_dir: Path, step: int) -> list[tuple[Any, ...]]:
    """What a step read, whichever rank did."""
    return [(s.number, s.corpus, s.epoch, s.places, s.texts) for s in trace_step(run_dir, step)]
