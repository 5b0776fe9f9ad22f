from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.shard_format import load_manifest
from launch.cli import main as headwater
from pretrain.data import StreamConfig, eval_batches, open_stream
from pretrain.data.ledger import Ledger
from pretrain.data.skip import IGNORED_LABEL, SkipLog, SkippedSample, leave_out
from pretrain.data.trace import trace_step
from tests.unit.pretrain_data.servers import serve
from tests.unit.pretrain_data.support import run_config
from tests.unit.pretrain_data.test_remote import no_waiting  # noqa: F401

STEPS = 6
BAD = 6


def damage(corpus: Path, block: int = BAD, member: str = "tok") -> None:
    manifest = load_manifest(corpus / "train")
    path = manifest.shard_path(int(manifest.blocks[block]["shard"]))
    data = bytearray(path.read_bytes())
    data[getattr(manifest.layout(block), member).offset + 2] ^= 1
    path.write_bytes(data)


def config(kind: str, directory: Path, corpus: Path, **overrides):
    return run_config(kind, directory, {"it": corpus}, data__on_bad_block="skip", **overrides)


def read(run, ranks: int, steps: int = STEPS) -> list[dict[str, np.ndarray]]:
    """Global batches, the ranks' parts and micro-batches in order; BERT's positions counted in the whole."""
    streams = [open_stream(run, "train", rank, ranks) for rank in range(ranks)]
    found = []
    for _ in range(steps):
        parts = [batch for stream in streams for batch in next(stream)]
        found.append(join(parts))
    for stream in streams:
        stream.close()
    return found


def join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    samples = np.cumsum([0] + [part["tokens"].size for part in parts])
    parts = [
        {
            name: array + (begin if name == "masked_positions" else 0)
            for name, array in part.items()
            if array.dtype != bool
        }
        for part, begin in zip(parts, samples, strict=False)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def left_out(kind: str, batch: dict[str, np.ndarray]) -> np.ndarray:
    if kind == "gpt":
        return batch["loss_mask"].sum(axis=1) == 0
    return batch["next_sentence_labels"] == IGNORED_LABEL


def touches(run, block: int) -> np.ndarray:
    """[STEPS, B] GPT samples that have a token of a block, by where they lie in the corpus."""
    with open_stream(run) as stream:
        feed = stream._feed
        size, length = run.batch.global_batch_size, run.batch.seq_length
        spans = feed.locate(np.arange(STEPS * size)).spans
        starts = feed.corpora[0].reader.token_starts
        tokens = (spans.start[:, None] + np.arange(length + 1)) % starts[-1]
        inside = ((tokens >= starts[block]) & (tokens < starts[block + 1])).any(axis=1)
        return np.array([inside[spans.row == row].any() for row in range(STEPS * size)]).reshape(STEPS, size)


def test_only_samples_of_the_bad_block_leave_the_loss(kind, corpus, tmp_path):
    clean = read(config(kind, tmp_path / "clean", corpus), 1)
    assert not any(left_out(kind, batch).any() for batch in clean)
    assert not (tmp_path / "clean" / "data_cache" / "skipped").exists()
    damage(corpus)
    run = config(kind, tmp_path / "run", corpus)
    found = read(run, 1)
    masks = np.array([left_out(kind, batch) for batch in found])
    assert 0 < masks.sum() < masks.size / 2
    if kind == "gpt":
        np.testing.assert_array_equal(masks, touches(run, BAD))
    for ours, theirs, skipped in zip(found, clean, masks, strict=True):
        for name in ours.keys() - {"masked_positions", "masked_labels"}:
            np.testing.assert_array_equal(ours[name][~skipped], theirs[name][~skipped])
        if kind == "bert":
            length = ours["tokens"].shape[1]
            keep = ~skipped[theirs["masked_positions"] // length]
            for name in ("masked_positions", "masked_labels"):
                np.testing.assert_array_equal(ours[name], theirs[name][keep])


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_layout_skips_the_same(kind, ranks, corpus, tmp_path):
    damage(corpus)
    alone, together = (config(kind, tmp_path / str(n), corpus) for n in (1, ranks))
    for ours, theirs in zip(read(together, ranks), read(alone, 1), strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    with open_stream(alone) as one, open_stream(together, "train", 0, ranks) as first:
        end = STEPS * alone.batch.global_batch_size
        assert one.skipped(end) == first.skipped(end) != {}


def test_what_was_skipped_is_counted_and_written_down(corpus, tmp_path):
    damage(corpus)
    run = config("gpt", tmp_path, corpus)
    expected = touches(run, BAD)
    with open_stream(run) as stream:
        for step in range(STEPS):
            next(stream)
            number = int(expected[: step + 1].sum())
            assert stream.skipped() == {
                "data/skipped_samples": number,
                "data/skipped_blocks": float(number > 0),
            }
        state = stream.state_dict()
    (ledger,) = (tmp_path / "data_cache" / "skipped").glob("*")
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [row["sample"] for row in rows] == np.flatnonzero(expected).tolist()
    manifest = load_manifest(corpus / "train")
    place = manifest.blocks[BAD]
    for row in rows:
        assert row["corpus"] == "it" and row["byte"] == int(place["offset"]) and "hash" in row["problem"]
        assert row["shard"] == str(manifest.shard_path(int(place["shard"]))) and row["block"] == int(
            place["key"]
        )
    with open_stream(run) as stream:  # an earlier state: what came after it will be read again
        next(stream), next(stream)
        state = {**state, "consumed_samples": 2 * run.batch.global_batch_size}
        stream.load_state_dict(state)
        assert stream.skipped()["data/skipped_samples"] == expected[:2].sum()
        rows = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert len(rows) == expected[:2].sum()
        for _ in range(STEPS - 2):
            next(stream)
        assert stream.skipped()["data/skipped_samples"] == expected.sum()


def test_the_ledger_counts_what_was_skipped_and_a_trace_shows_it(kind, corpus, tmp_path, capsys):
    run = config(kind, tmp_path, corpus, batch__micro_batch_size=12)
    open_stream(run).close()  # BERT's index
    damage(corpus, member="tok" if kind == "gpt" else "sent")
    ledger = Ledger(tmp_path, StreamConfig.of(run), {"data_parallel_size": 2})
    with open_stream(run, "train", 0, 2) as first, open_stream(run, "train", 1, 2) as second:
        ledger.begin(0, first.state_dict())
        masks = [left_out(kind, join([*next(first), *next(second)])) for _ in range(STEPS)]
        ledger.reached(STEPS, first.consumed_samples, first.skipped())
    step = int(np.argmax([mask.sum() for mask in masks])) + 1
    shown = list(trace_step(tmp_path, step))
    assert [sample.left_out is not None for sample in shown] == masks[step - 1].tolist()
    manifest = load_manifest(corpus / "train")
    block = str(manifest.shard_path(int(manifest.blocks[BAD]["shard"]))), int(manifest.blocks[BAD]["key"])
    assert {sample.left_out for sample in shown} == {None, block}
    assert all(bool(sample.texts and sample.places) == (sample.left_out is None) for sample in shown)
    last = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])
    assert last["data/skipped_samples"] == np.sum(masks) and last["data/skipped_blocks"] == 1
    assert headwater(["data", "trace", "--run", str(tmp_path), "--step", str(step)]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"left out of the loss: block {block[1]:06d} of {block[0]}") == masks[step - 1].sum()


def test_error_is_the_default(corpus, tmp_path):
    damage(corpus)
    with open_stream(run_config("gpt", tmp_path, {"it": corpus})) as stream:
        assert stream.skipped() == {}
        with pytest.raises(DataError, match="block 000002, byte .*hash"):
            for _ in range(STEPS):
                next(stream)


def test_a_whole_shard_may_be_gone(kind, corpora, tmp_path, no_waiting):  # noqa: F811
    remote = {"attempts": 2, "timeout_seconds": 0.5, "threads": 2}
    with serve(corpora["first"]) as server:
        run = config(kind, tmp_path, server.url, data__remote=remote)
        with open_stream(run) as stream:
            server.faults = [("train-00001.tar", 404)] * 1000
            batches = [join(next(stream)) for _ in range(STEPS)]
            counts = stream.skipped()
        used = 1000 - len(server.faults)
    masks = np.array([left_out(kind, batch) for batch in batches])
    assert counts["data/skipped_samples"] == masks.sum() > 0
    assert counts["data/skipped_blocks"] == 5
    assert used <= 10  # a block that cannot be read is not asked for again and again


@pytest.mark.parametrize("member", ["doc", "sent"])
def test_damaged_lengths_found_after_the_index_was_built(member, corpus, tmp_path):
    run = config("bert", tmp_path, corpus)
    open_stream(run).close()
    damage(corpus, member=member)
    masks = np.array([left_out("bert", batch) for batch in read(run, 1)])
    assert 0 < masks.sum() < masks.size / 2


def test_a_batch_without_any_good_sample(kind, corpus, tmp_path):
    run = config(kind, tmp_path, corpus)
    open_stream(run).close()  # BERT's index
    for block in range(len(load_manifest(corpus / "train").blocks)):
        damage(corpus, block)
    (batch,) = read(run, 1, steps=1)
    assert left_out(kind, batch).all()
    assert batch["tokens"].shape == (24, 32)
    if kind == "bert":
        assert not batch["masked_labels"].size


def test_validation_skips_too(corpus, tmp_path):
    manifest = load_manifest(corpus / "validation")
    path = manifest.shard_path(0)
    data = bytearray(path.read_bytes())
    data[manifest.layout(0).tok.offset] ^= 1
    path.write_bytes(data)
    run = config("gpt", tmp_path, corpus)
    for _ in range(2):
        batches = [batch for step in eval_batches(run) for batch in step]
        bad = sum(int((batch["loss_mask"].sum(axis=1) == 0).sum()) for batch in batches)
        ledger = tmp_path / "data_cache" / "skipped" / "validation-00000.jsonl"
        assert 0 < bad == len(ledger.read_text().splitlines())


def test_ledgers_of_more_ranks_than_now_are_cut_too(tmp_path):
    def row(sample: int) -> SkippedSample:
        return SkippedSample(sample, "it", "a.tar", sample % 3, 0, "hash")

    for rank in range(4):
        ledger = SkipLog(tmp_path, "train", rank, 4)
        for sample in range(rank, 40, 4):
            ledger.add(row(sample))
        ledger.hand_out(30)
        assert ledger.counts(100)["data/skipped_samples"] == len(range(0, 30)) // 4 * (rank + 1) + min(
            rank + 1, 2
        )
    ledgers = [SkipLog(tmp_path, "train", rank, 2) for rank in range(2)]
    with (tmp_path / "train-00003.jsonl").open("a") as file:
        file.write('{"sample": 3, "cor')  # killed while writing
    for ledger in ledgers:
        ledger.go_on(10)
    assert ledgers[0].counts(100) == {"data/skipped_samples": 10.0, "data/skipped_blocks": 3.0}


def test_leave_out_changes_nothing_else():
    batch = {
        "tokens": np.arange(12).reshape(3, 4),
        "loss_mask": np.ones((3, 4), dtype=np.float32),
        "masked_positions": np.array([0, 3, 5, 11]),
        "masked_labels": np.array([7, 8, 9, 10]),
        "next_sentence_labels": np.array([0, 1, 1]),
    }
    before = {name: array.copy() for name, array in batch.items()}
    found = leave_out(batch, np.array([False, True, False]))
    assert (
        found["loss_mask"].tolist() == [[1] * 4, [0] * 4, [1] * 4] and found["loss_mask"].dtype == np.float32
    )
    assert found["masked_positions"].tolist() == [0, 3, 11] and found["masked_labels"].tolist() == [7, 8, 10]
    assert found["next_sentence_labels"].tolist() == [0, IGNORED_LABEL, 1]
    for name, array in batch.items():
        np.testing.assert_array_equal(array, before[name])
