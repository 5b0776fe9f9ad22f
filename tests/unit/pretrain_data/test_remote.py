from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from pretrain.data import open_stream
from pretrain.data import stream as stream_module
from pretrain.data.access import retry as retry_module
from pretrain.data.access.errors import AccessError
from pretrain.data.access.retry import Retry, with_retries
from pretrain.data.feed import Feed
from pretrain.data.stream import WANT_STEPS
from tests.unit.pretrain_data.servers import serve
from tests.unit.pretrain_data.support import run_config, write_corpus

REMOTE = {"attempts": 3, "timeout_seconds": 0.4, "threads": 2}
MODES = ["range", "cache"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(Retry, "delay", lambda *_: 0.01)


@pytest.fixture
def server(corpora):
    with serve(corpora["first"]) as running:
        yield running


@pytest.fixture
def damaged(corpus):
    with serve(corpus) as running:
        yield running


def config(kind: str, directory: Path, path: str, mode: str = "auto", **data):
    values = {f"data__{name}": value for name, value in data.items()}
    return run_config(
        kind,
        directory,
        {"it": path},
        data__access=mode,
        data__remote=REMOTE,
        data__cache_dir=str(directory / "cache"),
        **values,
    )


def steps(configuration, count: int = 4, split: str = "train"):
    with open_stream(configuration, split) as stream:
        return [next(stream) for _ in range(count)]


def assert_same(found, expected) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for mine, reference in zip(ours, theirs, strict=True):
            assert mine.keys() == reference.keys()
            for name in mine:
                np.testing.assert_array_equal(mine[name], reference[name])


def local(kind: str, tmp_path: Path, path: Path):
    return steps(run_config(kind, tmp_path / "local", {"it": path}))


@pytest.mark.parametrize("mode", MODES)
def test_http_gives_the_batches_of_local_files_and_the_same_state(kind, mode, server, corpora, tmp_path):
    expected = run_config(kind, tmp_path / "local", {"it": corpora["first"]})
    remote = config(kind, tmp_path, server.url, mode)
    for split in ("train", "validation"):
        assert_same(steps(remote, split=split), steps(expected, split=split))
    with open_stream(remote) as there, open_stream(expected) as here:
        next(there), next(here)
        assert there.state_dict() == here.state_dict()
        here.load_state_dict(there.state_dict())
        assert_same([next(there)], [next(here)])


def test_ranges_bring_each_block_once_and_nothing_else(server, corpora, tmp_path):
    found = steps(config("gpt", tmp_path, server.url, "range"), count=12)
    assert_same(found, steps(run_config("gpt", tmp_path / "l", {"it": corpora["first"]}), count=12))
    shards = sum((corpora["first"] / "train" / f"train-0000{n}.tar").stat().st_size for n in range(3))
    assert server.sent < shards + 200_000  # tables and the tokenizer are most of these
    blocks = sum(count for path, count in server.requests.items() if path.endswith(".tar"))
    assert blocks <= 1 + len(_manifest(corpora["first"]).blocks)  # one is the probe


def test_little_memory_reads_blocks_again_and_stays_right(server, corpora, tmp_path):
    from pretrain.data.access.opening import Access, open_source, open_tables
    from pretrain.data.access.ranges import RangeShards
    from pretrain.data.reader import BlockReader

    run = config("gpt", tmp_path, server.url, "range")
    access = Access(run.data, tmp_path)
    manifest = open_tables(run.data.corpora[0], "train", access)
    source = open_source(run.data.corpora[0], manifest, access)
    assert isinstance(source, RangeShards)
    source._memory = 3000
    reader, reference = BlockReader(manifest, source=source), BlockReader(_manifest(corpora["first"]))
    rng = np.random.default_rng(0)
    for _ in range(4):
        starts = rng.integers(0, manifest.tokens, 8)
        np.testing.assert_array_equal(reader.read(starts, 50), reference.read(starts, 50))
        assert source._used <= 3000 or len(source._pieces) == 1
    reader.close()


def _manifest(corpus: Path):
    from data_tools.shard_format import load_manifest

    return load_manifest(corpus / "train")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", [503, 429, "drop", "stall", "short"])
def test_faults_that_pass_are_survived(mode, fault, server, corpora, tmp_path):
    expected = local("gpt", tmp_path, corpora["first"])
    server.faults = [("manifest.json", fault), ("blocks.npy", fault), (".tar", fault), (".tar", fault)]
    if fault == "short":  # of a table, only the hash tells
        server.faults = server.faults[2:]
    assert_same(steps(config("gpt", tmp_path, server.url, mode)), expected)
    assert server.faults == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("fault", "named"), [(503, "503"), ("drop", "tried 3 times"), ("stall", "no data came for 0.4 s")]
)
def test_faults_that_stay_are_an_error_with_a_name(mode, fault, named, server, tmp_path):
    with open_stream(config("gpt", tmp_path, server.url, mode)) as stream:
        server.faults = [("train-00001.tar", fault)] * 10
        started = time.monotonic()
        with pytest.raises(
            DataError, match=f"shard {server.url}/train/train-00001.tar, block 0.*byte.*{named}"
        ):
            for _ in range(100):
                next(stream)
        assert time.monotonic() - started < 20
        server.release.set()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("status", "named"), [(404, "404"), (403, "403"), (401, "401")])
def test_what_cannot_pass_is_not_tried_again(mode, status, named, server, tmp_path):
    with open_stream(config("gpt", tmp_path, server.url, mode)) as stream:
        server.faults = [("train-00001.tar", status)] * 100
        with pytest.raises(DataError, match=f"train-00001.tar, block .*{named}"):
            for _ in range(100):
                next(stream)
    used = 100 - len(server.faults)
    assert used <= (1 if mode == "cache" else 5)  # one for each of its blocks


def test_no_ranges_is_an_error_for_range_and_auto_takes_the_cache(server, corpora, tmp_path):
    server.ranges = False
    with pytest.raises(DataError, match=r"data.access: range.*train-00000.tar.*data.access: cache"):
        open_stream(config("gpt", tmp_path, server.url, "range"))
    assert server.sent < 1_000_000
    server.faults = [("train-00001.tar", "drop"), ("train-00002.tar", 503)]
    assert_same(steps(config("gpt", tmp_path, server.url, "auto")), local("gpt", tmp_path, corpora["first"]))
    cached = list((tmp_path / "cache").glob("*.tar"))
    assert len(cached) == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_truncated_shard_is_named(mode, damaged, corpus, tmp_path):
    os.truncate(corpus / "train" / "train-00001.tar", 2000)
    with open_stream(config("gpt", tmp_path, damaged.url, mode)) as stream:
        with pytest.raises(DataError, match=r"train-00001.tar, block \d+, byte \d+"):
            for _ in range(100):
                next(stream)


@pytest.mark.parametrize("mode", MODES)
def test_a_flipped_byte_is_named(mode, damaged, corpus, tmp_path):
    shard = corpus / "train" / "train-00001.tar"
    data = bytearray(shard.read_bytes())
    data[int(_manifest(corpus).blocks[6]["offset"]) + 3] ^= 1
    shard.write_bytes(data)
    with open_stream(config("gpt", tmp_path, damaged.url, mode)) as stream:
        with pytest.raises(DataError, match=r"train-00001.tar, block \d+, byte \d+: .*hash"):
            for _ in range(100):
                next(stream)
    assert not list((tmp_path / "cache").glob(f"{_manifest(corpus).shards[1].xxh3_128}*"))


def test_wrong_tables_are_refused(damaged, corpus, corpora, other_tokenizer, tmp_path):
    table = corpus / "train" / "blocks.npy"
    kept = table.read_bytes()
    table.write_bytes((corpora["first"] / "train" / "blocks.npy").read_bytes())
    with pytest.raises(DataError, match=f"{damaged.url}/train/blocks.npy does not belong to its manifest"):
        open_stream(config("gpt", tmp_path, damaged.url))
    table.write_bytes(kept)
    (corpus / "tokenizer.model").write_bytes(Path(other_tokenizer.path).read_bytes())
    with pytest.raises(DataError, match=f"{damaged.url}/train.*another tokenizer"):
        open_stream(config("gpt", tmp_path, damaged.url))
    (corpus / "tokenizer.model").unlink()
    with pytest.raises(DataError, match=f"no tokenizer at {damaged.url}"):
        open_stream(config("gpt", tmp_path, damaged.url))
    (corpus / "train" / "manifest.json").unlink()
    with pytest.raises(DataError, match=f"{damaged.url}/train/manifest.json.*404"):
        open_stream(config("gpt", tmp_path, damaged.url))


@pytest.mark.parametrize("mode", MODES)
def test_shards_of_another_corpus_are_refused(mode, corpora, tmp_path, tokenizer):
    """The same names, another content: as if the manifest were that of another corpus."""
    other = write_corpus(tmp_path / "other", tokenizer, seed=9)
    with serve(other) as server:
        run = run_config(
            "gpt", tmp_path, {"it": corpora["first"]}, data__access=mode, data__remote=REMOTE
        ).model_dump()
        run["data"]["corpora"][0]["shards"] = server.url + "/{shard}"
        from pretrain.config import RunConfig

        with open_stream(RunConfig.model_validate(run)) as stream:
            with pytest.raises(DataError, match=rf"{server.url}/train/train-0000\d.tar, block "):
                for _ in range(100):
                    next(stream)


def test_delays_grow_with_jitter_and_stay_bounded(monkeypatch):
    monkeypatch.undo()
    retry = Retry(attempts=9, first_seconds=1.0, longest_seconds=10.0)
    assert [retry.delay(n, 1.0) for n in (1, 2, 3, 4, 5, 2000)] == [1, 2, 4, 8, 10, 10]
    assert [retry.delay(n, 0.0) for n in (1, 2, 5)] == [0.5, 1, 5]
    waits: list[float] = []
    calls = 0

    def fails():
        nonlocal calls
        calls += 1
        raise AccessError("busy", transient=True)

    monkeypatch.setattr(retry_module, "_jitter", lambda: 1.0)
    with pytest.raises(AccessError, match=r"busy \(tried 4 times\)") as raised:
        with_retries(fails, Retry(4, 1.0, 3.0), waits.append)
    assert calls == 4 and waits == [1, 2, 3] and not raised.value.transient


def test_look_ahead_does_not_end_where_located_samples_end(server, tmp_path, monkeypatch):
    """Samples are located in chunks; what comes after a chunk is announced as early as what is in it."""
    announced: list[int] = []
    monkeypatch.setattr(stream_module, "LOCATE_STEPS", 5)
    monkeypatch.setattr(Feed, "want", lambda _, located: announced.append(int(located.numbers[0])))
    run = config("gpt", tmp_path, server.url, "range", prefetch_steps=0)
    with open_stream(run) as stream:
        size = run.batch.global_batch_size
        for step in range(17):
            next(stream)
            assert announced == list(range(0, (step + WANT_STEPS + 1) * size, size))
