from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.shard_format import load_manifest
from pretrain.data import open_stream, packing_index
from pretrain.data.packing import best_fit, pack_documents
from pretrain.data.packing_index import PackedSamples, open_packing
from pretrain.data.philox import SampleIds
from pretrain.data.reader import BlockReader
from tests.unit.pretrain_data.support import (
    marked_documents,
    marked_split,
    raw_stream,
    read_with_webdataset,
    run_config,
    write_corpus,
)


def best_fit_one_by_one(sizes: list[int], capacity: int) -> list[int]:
    """The algorithm as the paper tells it: rooms of all bins, searched for each item."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            at = rooms.index(min(fitting))
            rooms[at] -= size
        else:
            rooms.append(capacity - size)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(30))
def test_bins_are_those_of_best_fit_decreasing(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 60))
    sizes = rng.integers(1, capacity + 1, int(rng.integers(1, 300)))
    if seed % 2:
        sizes = np.maximum(1, (sizes * rng.random(len(sizes)) ** 2).astype(np.int64))
    bins = best_fit(sizes, capacity)
    filled = np.bincount(bins, weights=sizes).astype(int)
    assert (filled > 0).all() and (filled <= capacity).all()
    assert sorted((capacity - filled).tolist()) == best_fit_one_by_one(sizes.tolist(), capacity)


def test_documents_that_fit_are_whole_and_all_text_is_there_once():
    rng = np.random.default_rng(1)
    lengths = np.concatenate([rng.integers(1, 90, 400), [1, 2, 33, 34, 64, 65, 66, 97, 98]])
    packed = pack_documents(lengths, 32)
    starts = np.cumsum(lengths) - lengths
    sample = np.repeat(np.arange(len(packed.counts)), packed.counts)
    assert (np.bincount(sample, weights=packed.lengths) <= 32).all() and (packed.counts > 0).all()
    covered = np.zeros(lengths.sum(), dtype=int)
    for start, length in zip(packed.starts.tolist(), packed.lengths.tolist(), strict=True):
        covered[start : start + length] += 1
    expected = np.ones_like(covered)
    expected[np.cumsum(lengths) - 1] = 0  # an end of document is predicted, never put in
    assert np.array_equal(covered, expected)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        mine = (packed.starts >= start) & (packed.starts < start + length)
        assert mine.sum() == -(-(length - 1) // 32), "cut only where it is too long"
    assert sorted(packed.lengths[packed.starts == s][0] for s in starts[lengths > 33]) == [32] * int(
        (lengths > 33).sum()
    )


@pytest.fixture
def manifest(tmp_path):
    return marked_split(tmp_path / "train", marked_documents(np.random.default_rng(0), 300), per_block=7)


def ids_of(samples: np.ndarray) -> SampleIds:
    return SampleIds(np.zeros(len(samples), np.uint64), np.zeros(len(samples), np.int64), samples)


@pytest.mark.parametrize("window_documents", [1 << 20, 40])
def test_an_epoch_holds_every_document_once(manifest, tmp_path, monkeypatch, window_documents):
    """Against what stock webdataset reads; windows of a few blocks lose little."""
    monkeypatch.setattr(packing_index, "WINDOW_DOCUMENTS", window_documents)
    reader = BlockReader(manifest)
    index = open_packing(reader, 64, tmp_path / "cache")
    samples = PackedSamples(reader, index, 64)
    rows = samples.read(ids_of(np.arange(samples.count)))
    documents = [
        tokens
        for block in read_with_webdataset(manifest.directory)
        for tokens in np.split(block.tokens, np.cumsum(block.document_lengths)[:-1])
    ]
    found = []
    for row in range(samples.count):
        length = int(rows.within[row].sum())
        assert rows.within[row, :length].all() and not rows.tokens[row, length:].any()
        edges = [*np.flatnonzero(rows.begins[row]).tolist(), 64]
        assert edges[0] == 0 and (length == 64 or length in edges)
        for a, b in zip(edges, edges[1:], strict=False):
            if a < length:
                assert np.array_equal(rows.tokens[row, a + 1 : b], rows.labels[row, a : b - 1])
                found.append([*rows.tokens[row, a:b].tolist(), int(rows.labels[row, b - 1])])
    expected = []
    for document in documents:
        cuts = [document[at : at + 65] for at in range(0, len(document) - 1, 64)]
        expected += [cut.tolist() for cut in cuts]
    assert sorted(found) == sorted(expected)
    text = len(raw_stream(manifest.directory)) - len(documents)
    assert index.padding_share == pytest.approx(1 - text / (64 * samples.count))
    assert index.padding_share < (0.01 if window_documents > 40 else 0.2)


def test_rows_do_not_depend_on_the_batch(manifest, tmp_path):
    reader = BlockReader(manifest)
    samples = PackedSamples(reader, open_packing(reader, 64, tmp_path / "cache"), 64)
    whole = samples.read(ids_of(np.arange(samples.count)))
    for rows in np.array_split(np.random.default_rng(0).permutation(samples.count), 7):
        for part, all_of_it in zip(samples.read(ids_of(rows)), whole, strict=True):
            assert np.array_equal(part, all_of_it[rows])
    for blank, array in zip(samples.blank(), whole, strict=True):
        assert blank.shape == array[:1].shape and blank.dtype == array.dtype
    parts = samples.parts(ids_of(np.array([3])))
    assert sum(length for ((_, length),) in parts) == int(whole.within[3].sum())


def build(directory: Path, cache: Path, results: multiprocessing.Queue) -> None:
    index = open_packing(BlockReader(load_manifest(directory)), 64, cache)
    results.put((index.path.name, index.pieces.tobytes(), index.samples.tobytes()))


def test_processes_may_build_it_at_once(manifest, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (manifest.directory, tmp_path / "cache", results)
    processes = [context.Process(target=build, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found[0][0]]


def test_damaged_indexes_are_named(manifest, tmp_path):
    reader = BlockReader(manifest)
    path = open_packing(reader, 64, tmp_path).path
    pieces = (path / packing_index.PIECES_NAME).read_bytes()
    (path / packing_index.PIECES_NAME).write_bytes(pieces[:-8])
    with pytest.raises(DataError, match=f"{path} is damaged.*delete it"):
        open_packing(reader, 64, tmp_path)
    (path / packing_index.SUMMARY_NAME).write_text(json.dumps({"samples": 1}))
    with pytest.raises(DataError, match="is damaged"):
        open_packing(reader, 64, tmp_path)
    empty = marked_split(tmp_path / "empty", [[[]], [[]]], shards=1)
    with pytest.raises(DataError, match="no document with text"):
        open_packing(BlockReader(empty), 64, tmp_path)


def test_a_stream_of_packed_documents(tmp_path, corpora, tokenizer):
    """Through the configuration: all samples of an epoch once, resumable, documents apart, padding masked."""
    path = write_corpus(tmp_path / "corpus", tokenizer, seed=9, documents=150)
    config = run_config(
        "gpt",
        tmp_path,
        {"corpus": path},
        data={"corpora": [{"name": "corpus", "path": str(path)}], "packing": "best_fit"},
    )
    with open_stream(config, "train", 0, 1) as stream:
        steps = [next(stream) for _ in range(6)]
        state = stream.state_dict()
        after = next(stream)
    with open_stream(config, "train", 0, 1) as stream:
        stream.load_state_dict(json.loads(json.dumps(state)))
        again = next(stream)
    for one, other in zip(after, again, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    size = state["phases"][0]["corpora"][0]["samples"]
    rows = [row for step in steps for batch in step for row in batch["tokens"].tolist()]
    assert size > 30 and len({tuple(row) for row in rows[:size]}) == min(size, len(rows))
    batch = {name: np.concatenate([b[name] for step in steps for b in step]) for name in steps[0][0]}
    assert set(batch) == {"tokens", "labels", "loss_mask", "document_ids", "position_ids"}
    assert 0 < (batch["loss_mask"] == 0).mean() < 0.2
    assert (batch["tokens"] != tokenizer.eod_id).all() and (batch["labels"] == tokenizer.eod_id).any()
    ends = (batch["labels"] == tokenizer.eod_id) & (batch["loss_mask"] > 0)
    assert (np.diff(batch["document_ids"], axis=1)[ends[:, :-1]] == 1).all()
    assert (batch["position_ids"][:, 1:][ends[:, :-1]] == 0).all()
