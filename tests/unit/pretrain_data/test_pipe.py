from __future__ import annotations

import os
import sys
import time

import pytest

from data_tools.errors import DataError
from data_tools.shard_format import load_manifest
from pretrain.config import RunConfig
from pretrain.data import open_stream
from tests.unit.pretrain_data.support import run_config
from tests.unit.pretrain_data.test_remote import assert_same, local, no_waiting, steps  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_waiting")
REMOTE = {"attempts": 2, "timeout_seconds": 0.5, "threads": 2}


def config(kind, directory, corpus, shards, mode="auto"):
    run = run_config(
        kind,
        directory,
        {"it": corpus},
        data__access=mode,
        data__remote=REMOTE,
        data__cache_dir=str(directory / "cache"),
    ).model_dump()
    run["data"]["corpora"][0]["shards"] = shards
    return RunConfig.model_validate(run)


@pytest.fixture
def moved(corpus, tmp_path):
    """The manifest, block table and tokenizer in one place, the shards in another with odd characters."""
    place = tmp_path / "it's elsewhere"
    for split in ("train", "validation"):
        (place / split).mkdir(parents=True)
        for shard in (corpus / split).glob("*.tar"):
            shard.rename(place / split / shard.name)
    return corpus, place


def test_a_command_gives_the_batches_of_local_files(kind, corpora, moved, tmp_path):
    expected = local(kind, tmp_path, corpora["first"])
    shards = f"pipe:cat {corpora['first']}/{{shard}}"
    assert_same(steps(config(kind, tmp_path, corpora["first"], shards)), expected)
    corpus, place = moved
    quoted = str(place).replace("'", "'\\''")
    run = config(kind, tmp_path / "b", corpus, f"pipe:cat '{quoted}'/{{shard}} | cat")
    for split in ("train", "validation"):
        assert len(steps(run, split=split)) == 4


def test_a_second_run_starts_no_command(corpora, tmp_path):
    log = tmp_path / "log"
    shards = f"pipe:echo {{shard}} >> {log}; cat {corpora['first']}/{{shard}}"
    run = config("gpt", tmp_path, corpora["first"], shards)
    first = steps(run)
    assert sorted(log.read_text().split()) == [f"train/train-0000{n}.tar" for n in range(3)]
    assert_same(steps(run), first)
    assert len(log.read_text().split()) == 3


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("cat /nowhere/{shard}", "the command failed with status 1"),
        ("head -c 3000 {corpus}/{shard}", "ends too early, after 3000 of"),
        ("cat {corpus}/{shard} {corpus}/{shard}", "longer than the"),
        ("head -c 3000 {corpus}/{shard}; sleep 5", "no data came for 0.5 s"),
        ("cat {corpus}/{shard}; exit 3", "the command failed with status 3"),
        ("tr a b < {corpus}/{shard}", "does not match the hash"),
    ],
)
def test_a_command_that_fails_is_an_error_with_a_name(command, named, corpora, tmp_path):
    command = command.replace("{corpus}", str(corpora["first"]))
    started = time.monotonic()
    with open_stream(config("gpt", tmp_path, corpora["first"], f"pipe:{command}")) as stream:
        with pytest.raises(DataError, match=rf"shard pipe:.*train-0000\d.tar.*, block .*: .*{named}"):
            next(stream)
    assert time.monotonic() - started < 4
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_a_command_that_fails_once_is_tried_again(corpora, tmp_path):
    flag = tmp_path / "flag"
    command = f"pipe:test -e {flag}-$(basename {{shard}}) || (touch {flag}-$(basename {{shard}}); exit 1)"
    shards = f"{command} && cat {corpora['first']}/{{shard}}"
    found = steps(config("gpt", tmp_path, corpora["first"], shards))
    assert_same(found, local("gpt", tmp_path, corpora["first"]))


def test_ranges_are_refused_for_a_command(corpora, tmp_path):
    with pytest.raises(DataError, match="data.access: range, but pipe:cat.*whole shards"):
        open_stream(config("gpt", tmp_path, corpora["first"], "pipe:cat {shard}", "range"))


def test_a_missing_table_beside_a_pipe_is_named(corpus, tmp_path):
    (corpus / "train" / "blocks.npy").unlink()
    with pytest.raises(DataError, match="train/blocks.npy"):
        open_stream(config("gpt", tmp_path, corpus, "pipe:cat {shard}"))


def test_without_webdataset_the_extra_is_named(corpora, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"headwater\[pipe\]"):
        open_stream(config("gpt", tmp_path, corpora["first"], "pipe:cat {shard}"))


def test_no_descriptor_stays(corpora, tmp_path):
    shards = f"pipe:cat {corpora['first']}/{{shard}}"
    steps(config("gpt", tmp_path, corpora["first"], shards))
    before = len(os.listdir("/proc/self/fd"))
    steps(config("gpt", tmp_path / "again", corpora["first"], shards))
    # Fewer are fine: an earlier test may have left some that are collected now.
    assert len(os.listdir("/proc/self/fd")) <= before
    assert len(load_manifest(corpora["first"] / "train").shards) == 3
