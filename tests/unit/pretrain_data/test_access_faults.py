"""Faults of storage that are not damage, and storage that does not answer."""

from __future__ import annotations

import os
import resource
import shutil
import time

import pytest

from data_tools.errors import DataError
from data_tools.shard_format import load_manifest
from pretrain.data import open_stream
from pretrain.data.access import cache as cache_module
from pretrain.data.access.cache import ShardCache
from pretrain.data.access.local import MAX_OPEN_SHARDS, LocalShards
from pretrain.data.access.opening import Access, open_source, open_tables
from pretrain.data.access.retry import Retry
from pretrain.data.blocks import BadBlock, UnreadableBlock
from pretrain.data.reader import BlockReader
from tests.unit.pretrain_data.servers import serve
from tests.unit.pretrain_data.support import run_config
from tests.unit.pretrain_data.test_cache import put, shard
from tests.unit.pretrain_data.test_remote import assert_same, no_waiting, steps  # noqa: F401

MODES = ["range", "cache"]
STEPS = 12


def config(directory, paths, mode="auto", **overrides):
    remote = {"attempts": 4, "timeout_seconds": 3.0, "threads": 2} | overrides.pop("remote", {})
    return run_config(
        "gpt",
        directory,
        paths,
        data__access=mode,
        data__remote=remote,
        data__cache_dir=str(directory / "cache"),
        **overrides,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("status", [403, 503])
def test_skip_does_not_take_a_server_that_refuses_for_damage(mode, status, corpora, tmp_path, no_waiting):  # noqa: F811
    with serve(corpora["first"]) as server:
        run = config(tmp_path, {"it": server.url}, mode, data__on_bad_block="skip")
        with open_stream(run) as stream:
            server.faults = [("train-00001.tar", status)] * 1000
            with pytest.raises(
                UnreadableBlock, match=f"train-00001.tar, block .*{status}.*can be read"
            ) as raised:
                for _ in range(STEPS):
                    next(stream)
            assert not isinstance(raised.value, BadBlock)
            assert stream.skipped() == {"data/skipped_samples": 0.0, "data/skipped_blocks": 0.0}


@pytest.mark.parametrize("mode", MODES)
def test_skip_takes_a_short_shard_for_damage(mode, corpus, tmp_path, no_waiting):  # noqa: F811
    os.truncate(corpus / "train" / "train-00001.tar", 2000)
    with serve(corpus) as server:
        with open_stream(config(tmp_path, {"it": server.url}, mode, data__on_bad_block="skip")) as stream:
            for _ in range(STEPS):
                next(stream)
            assert stream.skipped()["data/skipped_blocks"] >= 4


def test_a_missing_file_is_damage_and_a_lost_directory_is_not(corpus, tmp_path):
    run = config(tmp_path, {"it": corpus}, data__on_bad_block="skip")
    with open_stream(run) as stream:
        (corpus / "train" / "train-00001.tar").rename(corpus / "moved.tar")
        for _ in range(STEPS):
            next(stream)
        assert stream.skipped()["data/skipped_blocks"] >= 4
    (corpus / "moved.tar").rename(corpus / "train" / "train-00001.tar")
    with open_stream(run) as stream:
        (corpus / "train").rename(corpus / "gone")
        with pytest.raises(UnreadableBlock, match="No such file"):
            next(stream)


@pytest.fixture
def few_descriptors():
    """Call it to leave room for so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(room: int) -> None:
        probe = os.open("/dev/null", os.O_RDONLY)
        os.close(probe)
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe + room, hard))

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_corpora_share_the_descriptors_of_a_process(corpora, few_descriptors):
    manifests = [load_manifest(corpora[name] / "train") for name in ("first", "second")]
    readers = [BlockReader(manifest) for manifest in manifests]
    for reader in readers:
        reader.documents(0)  # one open shard each
    few_descriptors(1 + len(readers))
    try:
        for block in range(len(manifests[0].blocks)):
            for reader in readers:
                assert reader.documents(block).size
        readers[0].close()
        few_descriptors(0)
        with pytest.raises(UnreadableBlock, match="Too many open files") as raised:
            readers[0].documents(0)
        assert not isinstance(raised.value, BadBlock)
    finally:
        for reader in readers:
            reader.close()


def test_each_of_many_corpora_keeps_fewer_shards_open(corpora, tmp_path):
    run = config(tmp_path, {"one": corpora["first"], "two": corpora["second"]})
    access = Access(run.data, tmp_path)
    entry = run.data.corpora[0]
    source = open_source(entry, open_tables(entry, "train", access), access)
    assert isinstance(source, LocalShards) and source._max_open == MAX_OPEN_SHARDS // 2


@pytest.mark.parametrize("end", ["close", "load", "forget"])
@pytest.mark.parametrize("mode", MODES)
def test_stalled_storage_does_not_hold_up_the_end(mode, end, corpora, tmp_path):
    with serve(corpora["first"]) as server:
        run = config(tmp_path, {"it": server.url}, mode)
        expected = steps(config(tmp_path / "local", {"it": corpora["first"]}), count=1)
        stream = open_stream(run)
        state = stream.state_dict()
        server.faults = [(".tar", "stall")] * 1000
        stream._steps = stream._begin()  # as `next`, but without waiting for the step
        time.sleep(0.3)
        started = time.monotonic()
        if end == "close":
            stream.close()
        elif end == "load":
            stream.load_state_dict(state)
        else:
            del stream
        assert time.monotonic() - started < 1.5
        server.faults = []
        server.release.set()
        if end == "load":
            assert_same([next(stream)], expected)
            stream.close()


def shard_gb(corpus) -> float:
    return sum(info.bytes for info in load_manifest(corpus / "train").shards) / 2**30


def test_a_cache_that_cannot_hold_a_shuffle_window_is_refused(corpora, tmp_path):
    needed = shard_gb(corpora["first"]) + shard_gb(corpora["second"])
    with serve(corpora["first"]) as first, serve(corpora["second"]) as second:
        paths = {"one": first.url, "two": second.url}
        small = config(tmp_path, paths, "cache", data__cache_gb=needed * 0.99)
        with pytest.raises(DataError, match=rf"data.cache_gb: .* {needed:.6g} GiB.*2 corpora.*data.access"):
            open_stream(small)
        open_stream(small, "validation").close()  # comes in storage order
        steps(config(tmp_path, paths, "cache", data__cache_gb=needed * 1.01), count=1)
        steps(config(tmp_path, paths, "range", data__cache_gb=needed * 0.01), count=1)
        limit = {"tokens": 100}  # of the first shard
        steps(config(tmp_path, paths, "cache", data__cache_gb=needed * 0.5, data__limit=limit), count=1)


def test_a_cached_shard_of_another_user_is_read(tmp_path, monkeypatch):
    cache = ShardCache(tmp_path, 5000)
    put(cache, 1)

    def refuse(_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(cache_module.os, "utime", refuse)
    descriptor = cache.open(shard(1))
    assert descriptor is not None
    os.close(descriptor)


def test_what_was_fetched_ahead_can_be_fetched_ahead_again(corpora, tmp_path):
    with serve(corpora["first"]) as server:
        run = config(tmp_path, {"it": server.url}, "cache")
        access = Access(run.data, tmp_path)
        entry = run.data.corpora[0]
        manifest = open_tables(entry, "train", access)
        source = open_source(entry, manifest, access)
        for times in (1, 2):
            source.want([0])
            until = time.monotonic() + 5
            while source._fetches and time.monotonic() < until:
                time.sleep(0.01)
            assert not source._fetches
            assert server.requests["/train/train-00000.tar"] == times
            assert BlockReader(manifest, source=source).documents(0).size
            shutil.rmtree(tmp_path / "cache")
        source.close()


def test_a_retry_that_gives_up_still_says_that_it_is_damage():
    from pretrain.data.access.errors import AccessError
    from pretrain.data.access.retry import with_retries

    def short():
        raise AccessError("short", transient=True, damaged=True)

    with pytest.raises(AccessError) as raised:
        with_retries(short, Retry(2), lambda _: None)
    assert raised.value.damaged and not raised.value.transient
