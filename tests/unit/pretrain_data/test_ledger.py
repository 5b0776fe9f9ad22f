"""Trace and audit: against what the streams really gave, and against ledgers that lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.tokenizer import load_tokenizer
from launch.cli import main as headwater
from pretrain.data import StreamConfig, open_stream
from pretrain.data.audit import audit_run
from pretrain.data.ledger import LEDGER, Ledger, effective, read_ledger
from pretrain.data.trace import trace_step
from tests.unit.pretrain_data.support import run_config

STEPS = 12


def attempt(config, world: int, state, first: int, last: int) -> tuple[dict, list]:
    """One attempt of a run: steps first+1..last over `world` ranks, recorded as the loop does."""
    streams = [open_stream(config, "train", rank, world) for rank in range(world)]
    for stream in streams:
        if state is not None:
            stream.load_state_dict(state)
    layout = {"data_parallel_size": world, "tensor_model_parallel_size": 1}
    ledger = Ledger(Path(config.run_dir), StreamConfig.of(config), layout)
    ledger.begin(first, streams[0].state_dict())
    eaten = []
    for step in range(first + 1, last + 1):
        eaten.append([next(stream) for stream in streams])
        if step % 2 == 0:
            ledger.reached(step, streams[0].consumed_samples)
    state = streams[0].state_dict()
    ledger.saved(last, streams[0].consumed_samples)
    for stream in streams:
        stream.close()
    return json.loads(json.dumps(state)), eaten


def run_of_three(kind, corpora, run_dir) -> list:
    """Steps 1-5 on one rank; 6-9 on two, 8-9 lost; 8-12 on three with other weights and batches."""
    one = run_config(kind, run_dir, corpora)
    saved, first = attempt(one, 1, None, 0, 5)
    kept, second = attempt(one, 2, saved, 5, 7)
    # The same attempt went on to step 9 and died, in the middle of a line.
    ledger = Ledger(Path(run_dir), StreamConfig.of(one), {})
    ledger.reached(9, 9 * 24)
    with (Path(run_dir) / LEDGER).open("a") as file:
        file.write('{"kind": "ste')
    changed = run_config(
        kind,
        run_dir,
        corpora,
        weights={"second": 0.25},
        batch__global_batch_size=30,
        batch__micro_batch_size=5,
    )
    _, third = attempt(changed, 3, kept, 7, STEPS)
    return first + second + third


def test_trace_shows_what_each_rank_read(kind, corpora, tmp_path):
    eaten = run_of_three(kind, corpora, tmp_path)
    tokenizer = load_tokenizer(corpora["first"] / "tokenizer.model")
    for step in (1, 5, 6, 7, 8, 12):
        found = list(trace_step(tmp_path, step))
        assert len(found) == sum(len(b["tokens"]) for rank in eaten[step - 1] for b in rank)
        rows = [
            (rank, row)
            for rank, batches in enumerate(eaten[step - 1])
            for batch in batches
            for row in unmasked(batch)
        ]
        for sample, (rank, row) in zip(found, rows, strict=True):
            assert sample.rank == rank
            text = "".join(sample.texts) if kind == "bert" else sample.texts[0]
            stored = b"".join(stored_bytes(place) for place in sample.places)
            tokens = np.frombuffer(stored, "<u2").astype(np.int64)
            if kind == "gpt":
                assert np.array_equal(tokens, row)
            else:
                assert np.array_equal(tokens, row[row > 5])
            assert (
                text.replace("<|endoftext|>", "") == tokenizer.decode(tokens[tokens != 5]) or kind == "bert"
            )


def unmasked(batch) -> np.ndarray:
    tokens = batch["tokens"].copy()
    if "masked_positions" in batch:
        tokens.reshape(-1)[batch["masked_positions"]] = batch["masked_labels"]
    return tokens


def stored_bytes(place) -> bytes:
    with open(place.shard, "rb") as shard:
        shard.seek(place.offset)
        return shard.read(2 * place.tokens)


def test_audit_passes_for_a_run_with_crashes_and_phases(kind, corpora, tmp_path, capsys):
    run_of_three(kind, corpora, tmp_path)
    assert [(one.number, last) for one, last in effective(read_ledger(tmp_path))] == [(1, 5), (2, 7), (3, 12)]
    report = audit_run(tmp_path)
    assert report.problems == []
    assert headwater(["data", "audit", "--run", str(tmp_path)]) == 0
    assert "audit passed" in capsys.readouterr().out
    total = 7 * 24 + 5 * 30
    assert f"12 steps, {total} samples" in report.facts[0]
    read = sum(int(fact.split(": ")[1].split(" of ")[0]) for fact in report.facts[1:])
    assert read == total * (32 if kind == "gpt" else 1)


@pytest.mark.parametrize(
    ("attempt", "path", "value", "problem"),
    [
        (1, ("state", "consumed_samples"), 96, "attempt 2 begins at sample 96, attempt 1 had read 120"),
        (2, ("state", "phases", 1, "corpora", 0, "start", "done"), 3, "attempt 3: its phases or batch sizes"),
        (2, ("state", "phases", 1, "first_sample"), 150, "attempt 3: its phases or batch sizes"),
        (2, ("state", "phases", 0, "corpora", 1, "weight"), 0.5, "attempt 3: its phases or batch sizes"),
        (0, ("state", "phases", 0, "corpora", 0, "start", "done"), 7, "attempt 1 begins at step 0"),
    ],
)
def test_audit_finds_a_wrong_start(attempt, path, value, problem, corpora, tmp_path):
    run_of_three("gpt", corpora, tmp_path)
    edit(tmp_path, "attempt", attempt, path, value)
    with pytest.raises(DataError, match="the audit failed") as caught:
        headwater_audit(tmp_path)
    assert problem in str(caught.value)


def test_audit_finds_repeated_text_and_wrong_counts(corpora, tmp_path):
    run_of_three("gpt", corpora, tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "consumed_samples": 145}\n{"step": 8, "lo')
    checkpoint = tmp_path / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    trainer = {"trainer": {"step": 7, "stream": {"consumed_samples": 7}}}
    (checkpoint / "manifest.json").write_text(json.dumps(trainer))
    edit(tmp_path, "saved", 0, ("consumed_samples",), 119)
    edit(tmp_path, "attempt", 2, ("state", "phases", 1, "corpora", 0, "start", "done"), 0)
    edit(tmp_path, "attempt", 2, ("state", "phases", 1, "corpora", 0, "start", "epoch"), 0)
    problems = "\n".join(audit_run(tmp_path).problems)
    assert "metrics.jsonl: step 6 has 145 samples, not 144" in problems
    assert "checkpoints: step 7 has 7 samples, not 168" in problems
    assert "ledger.jsonl, attempt 1: step 5 has 119 samples, not 120" in problems
    assert "corpus first, epoch 0" in problems and "read twice" in problems


def headwater_audit(run_dir: Path) -> None:
    from pretrain.data.audit import main

    main(["--run", str(run_dir)])


def edit(run_dir: Path, kind: str, number: int, path: tuple, value) -> None:
    """Change one value in the `number`-th line of a kind."""
    lines = []
    for line in (run_dir / LEDGER).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    node = [line for line in lines if line["kind"] == kind][number]
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    (run_dir / LEDGER).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_errors_name_what_is_missing(corpora, tmp_path, capsys):
    assert headwater(["data", "audit", "--run", str(tmp_path)]) == 2
    assert "ledger.jsonl: No such file" in capsys.readouterr().err
    run_of_three("gpt", corpora, tmp_path)
    assert headwater(["data", "trace", "--run", str(tmp_path), "--step", "13"]) == 2
    assert "has steps 1 to 12" in capsys.readouterr().err
    assert headwater(["data", "trace", "--run", str(tmp_path), "--step", "8", "--rank", "2"]) == 0
    assert headwater(["data", "trace", "--run", str(tmp_path), "--step", "8", "--rank", "3"]) == 2
    out = capsys.readouterr().out
    assert out.count("rank 2  sample") == 10 and "rank 0" not in out
    assert "train-0000" in out and "byte " in out
