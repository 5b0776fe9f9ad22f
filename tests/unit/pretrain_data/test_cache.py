from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_tools.shard_format import ShardInfo, load_manifest
from pretrain.data.access import cache as cache_module
from pretrain.data.access.cache import ShardCache
from pretrain.data.access.errors import AccessError
from pretrain.data.reader import BlockReader
from tests.unit.pretrain_data.servers import serve
from tests.unit.pretrain_data.test_remote import assert_same, config, local, no_waiting, steps  # noqa: F401

SIZE = 1000


def content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


def shard(number: int) -> ShardInfo:
    data = content(number)
    return ShardInfo(
        path=f"{number}.tar",
        bytes=SIZE,
        xxh3_128=xxhash.xxh3_128_hexdigest(data),
        tokens=0,
        documents=0,
        blocks=0,
    )


def put(cache: ShardCache, number: int) -> None:
    cache.fetch(shard(number), lambda descriptor: os.pwrite(descriptor, content(number), 0))


def get(cache: ShardCache, number: int) -> bytes | None:
    descriptor = cache.open(shard(number))
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, 2 * SIZE, 0)
    finally:
        os.close(descriptor)


def used(directory: Path) -> int:
    """Bytes of all shards; nobody begins or removes one meanwhile."""
    with (directory / "room.lock").open("a") as room:
        fcntl.flock(room, fcntl.LOCK_EX)
        sizes = []
        for path in directory.glob("*.tar*"):
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return sum(sizes)


def test_a_shard_comes_once_and_stays(tmp_path):
    cache = ShardCache(tmp_path / "new" / "cache", 3 * SIZE)
    assert get(cache, 1) is None
    put(cache, 1)
    assert get(cache, 1) == content(1)
    cache.fetch(shard(1), lambda _: pytest.fail("fetched again"))
    assert [path.name for path in (tmp_path / "new" / "cache").glob("*.tar*")] == [shard(1).xxh3_128 + ".tar"]


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "TOUCH_SECONDS", 0.0)
    cache = ShardCache(tmp_path, 3 * SIZE + 10)
    for number in (1, 2, 3):
        put(cache, number)
        time.sleep(0.02)
    get(cache, 1)
    time.sleep(0.02)
    put(cache, 4)
    assert [get(cache, number) is not None for number in (1, 2, 3, 4)] == [True, False, True, True]
    put(cache, 5)
    assert used(tmp_path) <= 3 * SIZE + 10


def test_removal_does_not_disturb_a_reader(tmp_path):
    cache = ShardCache(tmp_path, SIZE)
    put(cache, 1)
    descriptor = cache.open(shard(1))
    put(cache, 2)
    assert get(cache, 1) is None
    assert os.pread(descriptor, SIZE, 0) == content(1)
    os.close(descriptor)


def test_a_shard_that_is_larger_than_the_cache_is_an_error(tmp_path):
    with pytest.raises(AccessError, match="1000 bytes, data.cache_gb allows 999"):
        put(ShardCache(tmp_path, SIZE - 1), 1)
    assert not list(tmp_path.glob("*.tar*"))


def test_what_does_not_match_its_hash_is_fetched_again_and_never_kept(tmp_path):
    cache = ShardCache(tmp_path, 5 * SIZE)
    tries = iter([b"x" * SIZE, content(1)])
    cache.fetch(shard(1), lambda descriptor: os.pwrite(descriptor, next(tries), 0))
    assert get(cache, 1) == content(1)
    for wrong in (b"x" * SIZE, content(2) + b"x"):
        with pytest.raises(AccessError, match="does not match the hash"):
            cache.fetch(shard(2), lambda descriptor, wrong=wrong: os.pwrite(descriptor, wrong, 0))
        assert get(cache, 2) is None and not list(tmp_path.glob("*.part"))


def test_a_failed_fetch_leaves_nothing(tmp_path):
    cache = ShardCache(tmp_path, 5 * SIZE)

    def fails(descriptor: int) -> None:
        os.pwrite(descriptor, b"half", 0)
        raise AccessError("gone")

    with pytest.raises(AccessError, match="gone"):
        cache.fetch(shard(1), fails)
    assert not list(tmp_path.glob("*.tar*"))
    put(cache, 1)
    assert get(cache, 1) == content(1)


def test_waiting_for_room_ends_with_an_error(tmp_path):
    cache = ShardCache(tmp_path, SIZE + 10, patience_seconds=0.2)

    def inner(descriptor: int) -> None:
        with pytest.raises(AccessError, match="other shards are being fetched.*data.cache_gb"):
            put(cache, 2)
        os.pwrite(descriptor, content(1), 0)

    cache.fetch(shard(1), inner)
    put(cache, 2)
    assert get(cache, 2) == content(2)


def _work(directory: str, seed: int, results) -> None:
    cache = ShardCache(Path(directory), 4 * SIZE)
    rng, fetched = np.random.default_rng(seed), 0

    def fill(descriptor: int, number: int) -> None:
        nonlocal fetched
        fetched += 1
        os.pwrite(descriptor, content(number), 0)

    for number in rng.integers(0, 8, 300).tolist():
        while (found := get(cache, number)) is None:
            cache.fetch(shard(number), lambda descriptor, number=number: fill(descriptor, number))
        if found != content(number):
            return results.put("wrong content")
        if used(Path(directory)) > 4 * SIZE:
            return results.put("over the bound")
    results.put(fetched)


def test_processes_share_a_cache_that_is_too_small_for_all(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_work, args=(str(tmp_path), seed, results)) for seed in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert all(isinstance(count, int) and count > 0 for count in found), found
    assert len(list(tmp_path.glob("*.tar"))) == 4 and not list(tmp_path.glob("*.part"))


def test_two_processes_that_want_the_same_shard_fetch_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def fetch() -> None:
        cache, fetched = ShardCache(tmp_path, 5 * SIZE), []

        def slow(descriptor: int) -> None:
            fetched.append(1)
            time.sleep(0.3)
            os.pwrite(descriptor, content(1), 0)

        cache.fetch(shard(1), slow)
        results.put((len(fetched), get(cache, 1) == content(1)))

    processes = [context.Process(target=fetch) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=30) for _ in processes) == [(0, True), (0, True), (1, True)]
    for process in processes:
        process.join()


KILLED = """
import os, sys, time
from pathlib import Path
from pretrain.data.access.cache import ShardCache
from tests.unit.pretrain_data.test_cache import SIZE, shard
def stuck(descriptor):
    os.pwrite(descriptor, b"half of it", 0)
    print("fetching", flush=True)
    time.sleep(60)
ShardCache(Path(sys.argv[1]), SIZE + 10).fetch(shard(1), stuck)
"""


def test_a_killed_fetch_leaves_its_room_and_its_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"fetching\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (part,) = tmp_path.glob("*.part")
    assert part.stat().st_size == SIZE
    cache = ShardCache(tmp_path, SIZE + 10, patience_seconds=5)
    put(cache, 2)  # there is room for one only
    assert not list(tmp_path.glob("*.part"))
    put(cache, 1)
    assert get(cache, 1) == content(1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_makes_room_and_then_is_an_error(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount")
    try:
        large = 40_000
        cache = ShardCache(disk / "cache", 1 << 30)
        infos = []
        for number in (1, 2):  # the second has room only after the first is removed
            data = np.random.default_rng(number).bytes(large)
            info = ShardInfo(
                path="x",
                bytes=large,
                xxh3_128=xxhash.xxh3_128_hexdigest(data),
                tokens=0,
                documents=0,
                blocks=0,
            )
            cache.fetch(info, lambda descriptor, data=data: os.pwrite(descriptor, data, 0))
            infos.append(info)
        assert [cache.open(info) is None for info in infos[:1]] == [True]
        (disk / "other").write_bytes(bytes(20_000))
        with pytest.raises(AccessError, match="No space left.*data.cache_dir"):
            huge = ShardInfo(path="x", bytes=60_000, xxh3_128="0" * 32, tokens=0, documents=0, blocks=0)
            cache.fetch(huge, lambda _: pytest.fail("there is no room"))
        assert not list((disk / "cache").glob("*.part"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_damaged_copy_is_found_and_fetched_again(corpora, tmp_path, no_waiting):  # noqa: F811
    with serve(corpora["first"]) as server:
        run = config("bert", tmp_path, server.url, "cache")
        expected = local("bert", tmp_path, corpora["first"])
        assert_same(steps(run), expected)
        manifest = load_manifest(corpora["first"] / "train")
        for number, info in enumerate(manifest.shards):
            path = tmp_path / "cache" / f"{info.xxh3_128}.tar"
            if number == 0:
                os.truncate(path, 5000)
                continue
            data = bytearray(path.read_bytes())
            for row in np.flatnonzero(manifest.blocks["shard"] == number):
                layout = manifest.layout(int(row))
                data[(layout.tok if number == 1 else layout.doc).offset] ^= 1
            path.write_bytes(data)
        before = {path: count for path, count in server.requests.items() if path.endswith(".tar")}
        assert_same(steps(run, count=4), expected)
        after = {path: server.requests[path] for path in before}
        assert all(after[path] == before[path] + 1 for path in before), (before, after)
        for info in manifest.shards:
            assert (
                xxhash.xxh3_128_hexdigest((tmp_path / "cache" / f"{info.xxh3_128}.tar").read_bytes())
                == info.xxh3_128
            )
        assert BlockReader(manifest).documents(0).size
