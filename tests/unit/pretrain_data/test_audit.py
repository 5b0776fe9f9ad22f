"""Audits of runs that ended as runs do: killed at any moment, with a checkpoint that went bad."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.schema import PretrainBatchConfig
from pretrain.data import StreamConfig, open_stream, walk
from pretrain.data.audit import audit_run
from pretrain.data.ledger import Ledger
from pretrain.data.phases import CorpusShare, Phase
from pretrain.data.skip import SKIPPED_DIRECTORY
from pretrain.data.state import StreamState
from pretrain.data.steps import BatchPlan
from pretrain.data.token_order import TokenStart
from tests.unit.pretrain_data.support import run_config

LAYOUT = {"data_parallel_size": 1, "tensor_model_parallel_size": 1}


@pytest.fixture
def killed(corpora, tmp_path) -> Path:
    """A run whose ledger says step 10; it was killed after step 12 and its checkpoint."""
    config = run_config("gpt", tmp_path, corpora)
    ledger = Ledger(tmp_path, StreamConfig.of(config), LAYOUT)
    with open_stream(config) as stream:
        ledger.begin(0, stream.state_dict())
        for step in range(1, 13):
            next(stream)
            if step == 10:
                ledger.reached(step, stream.consumed_samples)
            if step in (10, 12):
                save(tmp_path, step, stream.state_dict())
    return tmp_path


def save(run_dir: Path, step: int, state: dict) -> Path:
    path = run_dir / "checkpoints" / f"step-{step:08d}" / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format_version": 1, "trainer": {"step": step, "stream": state}}))
    return path


def test_a_kill_before_the_ledger_heard_of_a_checkpoint_is_no_problem(killed):
    assert audit_run(killed).problems == []
    save(killed, 12, {"consumed_samples": 287})
    assert audit_run(killed).problems == ["checkpoints: step 12 has 287 samples, not 288"]


def test_an_evaluation_after_the_last_ledger_line_is_no_problem(killed):
    (killed / "metrics.jsonl").write_text('{"step": 12, "eval/loss": 1.0}\n')
    assert audit_run(killed).problems == []
    (killed / "metrics.jsonl").write_text('{"step": 11, "consumed_samples": 265}\n')
    assert audit_run(killed).problems == ["metrics.jsonl: step 11 has 265 samples, not 264"]


@pytest.mark.parametrize(
    "content", ["{garb", "[]", "{}", '{"trainer": {"step": 12, "stream": null}}', "\udcff"]
)
def test_a_damaged_manifest_is_passed_over(content, killed):
    path = save(killed, 12, {})
    path.write_bytes(content.encode(errors="surrogateescape"))
    report = audit_run(killed)
    assert report.problems == []
    assert any(fact.startswith(f"{path} was passed over, it cannot be read") for fact in report.facts)


def test_a_newer_checkpoint_that_resume_passed_over_is_no_problem(killed, corpora):
    """Step 12 was damaged, so the run went on from step 10, with other batches."""
    config = run_config("gpt", killed, corpora, batch__global_batch_size=30)
    ledger = Ledger(killed, StreamConfig.of(config), LAYOUT)
    with open_stream(config) as stream:
        manifest = killed / "checkpoints" / "step-00000010" / "manifest.json"
        stream.load_state_dict(json.loads(manifest.read_text())["trainer"]["stream"])
        ledger.begin(10, stream.state_dict())
        next(stream)
        ledger.reached(11, stream.consumed_samples)
    report = audit_run(killed)
    assert report.problems == []
    assert any("step 12" in fact and "undone" in fact for fact in report.facts)
    save(killed, 12, {"consumed_samples": 289})
    assert audit_run(killed).problems == ["checkpoints: step 12 has 289 samples, not 300"]


def test_skipped_samples_are_mentioned(killed):
    assert not any("damaged blocks" in fact for fact in audit_run(killed).facts)
    rows = [
        {"sample": n, "corpus": "first", "shard": "a.tar", "block": 3, "byte": 0, "problem": "bad"}
        for n in (5, 6, 239, 240)  # the kept steps end at sample 240
    ]
    directory = killed / "data_cache" / SKIPPED_DIRECTORY
    directory.mkdir(parents=True)
    (directory / "train-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = audit_run(killed)
    assert report.problems == []
    assert any(fact.startswith("3 samples of 1 damaged blocks had no part") for fact in report.facts)


def test_coverage_counts_as_a_table_of_all_tokens_does():
    rng = np.random.default_rng(1)
    share = CorpusShare("it", 1.0, "", 5000, "tokens", TokenStart())
    coverage, table = walk.Coverage(share), Counter()
    pieces = rng.permutation(5000 // 8)[:500] * 8
    for part in np.array_split(pieces, 7):
        coverage.add(part, np.full(len(part), 8))
        table.update((part[:, None] + np.arange(8)).ravel().tolist())
    assert coverage.twice == 0 and coverage.read == len(table) == 4000
    held = np.concatenate([np.arange(*one) for one in zip(coverage._begin, coverage._end, strict=True)])
    assert held.tolist() == sorted(table)
    coverage.add(pieces[:3] + 7, np.ones(3, dtype=np.int64))
    coverage.add(np.array([int(pieces[0]), int(pieces[0])]), np.array([2, 2]))
    assert coverage.twice == 5 and coverage.read == 4007


def test_the_walk_takes_no_more_memory_for_more_samples(monkeypatch):
    monkeypatch.setattr(walk, "CHUNK_SAMPLES", 1 << 13)
    share = CorpusShare("it", 1.0, "", 10**12, "tokens", TokenStart())
    sizes = PretrainBatchConfig(micro_batch_size=1, global_batch_size=1, seq_length=8192)
    phase = Phase(0, 0, 8192, (share,))
    state = StreamState("gpt", "train", 1, {}, (phase,), (BatchPlan(0, 0, sizes),), 0)
    peaks = []
    for samples in (1 << 15, 1 << 18):
        tracemalloc.start()
        facts, problems = walk.walk(replace(state, consumed_samples=samples))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert facts == [f"corpus it, epoch 0: {samples * 8192} of {10**12} tokens"] and not problems
    assert peaks[1] < 1.5 * peaks[0]
