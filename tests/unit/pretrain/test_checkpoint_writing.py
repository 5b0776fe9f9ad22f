"""Writing checkpoints: the file format, a full disk, what stays, fingerprints against a plain loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pretrain.checkpoint import writer as writing
from pretrain.checkpoint.fragments import Fragment
from pretrain.checkpoint.host_copy import HostCopy, HostMemory
from pretrain.checkpoint.layout import ParameterLayout
from pretrain.checkpoint.manifest import step_directory, verify
from pretrain.checkpoint.proof import add_up, fingerprints
from pretrain.checkpoint.publish import CheckpointWriteError, prune
from pretrain.checkpoint.snapshot import Place, Snapshot
from pretrain.checkpoint.state_file import write_state_file
from pretrain.checkpoint.writer import CheckpointWriter
from pretrain.config.schema import CheckpointConfig
from pretrain.parallel.pending_reads import PendingReads
from pretrain.run_directory import Claim, ReplacedError
from tests.unit.pretrain.test_checkpoint_files import write


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(5_000_000), "b": torch.randn(3), "none": torch.empty(0)}
    found = write_state_file(tmp_path / "x.safetensors", tensors, {"note": "ä"})
    assert found["bytes"] == (tmp_path / "x.safetensors").stat().st_size
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[k], tensors[k]) for k in tensors)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"note": "ä"}


def test_host_memory_is_one_buffer_used_again() -> None:
    memory = HostMemory()
    first = memory.copy_of({"a": torch.ones(1000), "b": torch.zeros(24)})
    second = memory.copy_of({"a": torch.full((500,), 2.0)})
    second.make()
    assert second.tensors["a"].data_ptr() == first.tensors["a"].data_ptr()
    assert second.tensors["a"].sum() == 1000.0


class SlowTensor:
    """Stands in for a tensor that takes a while to copy."""

    is_cuda = False

    def __init__(self) -> None:
        self.begun, self.go_on, self.copied = threading.Event(), threading.Event(), 0

    def detach(self) -> torch.Tensor:
        self.begun.set()
        assert self.go_on.wait(10.0)
        self.copied += 1
        return torch.ones(3)


def test_an_update_waits_until_the_copy_is_through() -> None:
    slow, reads, order = SlowTensor(), PendingReads(), []
    copy = HostCopy({"a": slow}, {"a": torch.zeros(3)})  # type: ignore[dict-item]
    reads.add(copy.make)
    writer = threading.Thread(target=copy.make)
    writer.start()
    assert slow.begun.wait(10.0)
    update = threading.Thread(target=lambda: (reads.wait(), order.append(float(copy.tensors["a"].sum()))))
    update.start()
    update.join(0.2)
    assert update.is_alive() and order == []
    slow.go_on.set()
    update.join(10.0), writer.join(10.0)
    assert order == [3.0] and slow.copied == 1
    assert reads.take_waited_seconds() > 0.15 and reads.take_waited_seconds() == 0.0


def test_an_update_copies_what_nobody_has_copied() -> None:
    reads, source = PendingReads(), torch.ones(3)
    copy = HostMemory().copy_of({"a": source})
    reads.add(copy.make)
    reads.wait()
    source.zero_()
    copy.make()
    assert copy.tensors["a"].sum() == 3.0


class OnGpu:
    """Stands in for a tensor on the GPU of local rank 3."""

    is_cuda, device = True, torch.device("cuda", 3)

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def detach(self) -> torch.Tensor:
        self.seen.append("copy")
        return torch.ones(3)


def test_the_stream_of_a_copy_is_entered_and_left_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @contextmanager
    def inside(name: str) -> Iterator[None]:
        seen.append(f"into {name}")
        yield
        seen.append(f"out of {name}")

    stream = SimpleNamespace(
        record_event=lambda: "computed",
        wait_event=lambda event: seen.append(f"wait for {event}"),
        synchronize=lambda: seen.append("synchronize"),
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: inside("stream"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: inside(str(device)))
    copy = HostCopy({"a": OnGpu(seen)}, {"a": torch.zeros(3)})  # type: ignore[dict-item]
    copy.make()
    on_stream = ["into stream", "copy", "out of stream", "synchronize"]
    assert seen == ["into cuda:3", "wait for computed", *on_stream, "out of cuda:3"]
    assert copy.tensors["a"].sum() == 3.0


def snapshot(run_dir: Path, step: int = 3, world_size: int = 1) -> Snapshot:
    state = HostMemory().copy_of({"master/0": torch.arange(6.0)})
    return Snapshot(
        run_dir=run_dir,
        place=Place(rank=0, world_size=world_size, tp_rank=0, tp_size=1, dp_rank=0),
        state=state,
        fragments=[Fragment("w", 0, 0, 0, 6)],
        layouts={"w": ParameterLayout((6,), None)},
        manifest={"step": step, "trainer": {"step": step}},
        contents={"config.yaml": b"seed: 1\n"},
    )


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of one rank, without process groups."""

    def gather(into: list[Any], mine: Any) -> None:
        into[0] = mine

    monkeypatch.setattr(
        writing,
        "dist",
        SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: 1, all_gather_object=gather),
    )


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("point", ["save.begin", "save.state", "save.manifest", "save.rename"])
def test_a_full_disk_keeps_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    good = write(tmp_path, 2)
    monkeypatch.setattr("pretrain.faults._passed", type(__import__("pretrain.faults").faults._passed)())
    monkeypatch.setenv("HEADWATER_FAULT", f"{point} full")
    writer = CheckpointWriter(CheckpointConfig(keep_last=1), "now", lambda: None)
    writer.start(snapshot(tmp_path))
    with pytest.raises(CheckpointWriteError, match="rank 0: .*No space left on device.* untouched") as caught:
        writer.settle()
    assert caught.value.exit_code == 74 and writer.failed
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [good.name]
    assert verify(good) == []


@pytest.mark.usefixtures("alone")
def test_an_attempt_that_was_replaced_publishes_nothing(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / "attempt.json").write_text('{"attempt": "newer", "host": "b", "started": "now"}')
    writer = CheckpointWriter(CheckpointConfig(keep_last=1), "older", Claim(tmp_path, "older").check)
    writer.start(snapshot(tmp_path))
    with pytest.raises(ReplacedError, match="attempt newer on b") as caught:
        writer.settle()
    assert caught.value.exit_code == 77
    assert not step_directory(tmp_path, 3).exists() and step_directory(tmp_path, 2).exists()


@pytest.mark.usefixtures("alone")
def test_publishing_clears_away_what_attempts_left(tmp_path: Path) -> None:
    write(tmp_path, 2).rename(tmp_path / "checkpoints" / ".writing-step-00000002.dead")
    writer = CheckpointWriter(CheckpointConfig(), "now", lambda: None)
    writer.start(snapshot(tmp_path))
    writer.settle()
    assert writer.take_written() == step_directory(tmp_path, 3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert verify(step_directory(tmp_path, 3)) == []


def test_the_share_of_a_rank_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    good = write(tmp_path, 2)
    writer = CheckpointWriter(CheckpointConfig(), "now", lambda: None)
    writer.start(snapshot(tmp_path, world_size=2))
    began = time.monotonic()
    writer.abandon(peers_seconds=0.5, timeout_seconds=30.0)
    assert 0.4 < time.monotonic() - began < 10.0
    assert writer.failed and writer.take_written() is None
    assert list((tmp_path / "checkpoints").iterdir()) == [good]


def test_a_share_that_came_in_time_is_published_all_the_same(tmp_path: Path) -> None:
    writer = CheckpointWriter(CheckpointConfig(), "now", lambda: None)
    writer.start(snapshot(tmp_path))
    writer.abandon(peers_seconds=0.0, timeout_seconds=30.0)
    assert not writer.failed and writer.take_written() == step_directory(tmp_path, 3)


def test_keep_every_keeps_for_good(tmp_path: Path) -> None:
    for step in range(1, 8):
        write(tmp_path, step)
    prune(tmp_path, step_directory(tmp_path, 7), keep_last=2, keep_every=3)
    left = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    assert left == [3, 6, 7]


@pytest.mark.parametrize(("dim", "stride"), [(0, 1), (1, 1), (0, 2), (1, 2), (None, 1)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_fingerprint_is_that_of_the_whole_parameter_however_it_is_cut(
    dim: int | None, stride: int, size: int
) -> None:
    full = torch.randn(16, 24)
    layout = ParameterLayout((16, 24), dim, stride)
    words = full.numpy().ravel().view(np.uint32).tolist()
    expected = sum(word * (2 * index + 1) for index, word in enumerate(words)) % 2**32
    rng = np.random.default_rng(size)
    parts = []
    for rank in range(size):
        shard = layout.split(full, rank, size).reshape(-1)
        cuts = [0, *sorted(rng.choice(np.arange(1, len(shard)), 3, replace=False).tolist()), len(shard)]
        for index, (begin, end) in enumerate(zip(cuts, cuts[1:], strict=False)):  # as ZeRO cuts it
            place = Place(rank=0, world_size=1, tp_rank=rank, tp_size=size, dp_rank=index)
            fragment = Fragment("w", begin, 0, 0, end - begin)
            parts.append(fingerprints({"master/0": shard[begin:end]}, [fragment], {"w": layout}, place))
    assert add_up(parts) == {"w": expected}


def test_a_fingerprint_notices_places() -> None:
    place = Place(rank=0, world_size=1, tp_rank=0, tp_size=1, dp_rank=0)
    one = torch.randn(200_000)
    other = one.clone()
    other[150_000], other[3] = one[3], one[150_000]
    layouts, fragment = {"w": ParameterLayout((200_000,), None)}, Fragment("w", 0, 0, 0, 200_000)
    sums = [fingerprints({"master/0": x}, [fragment], layouts, place)["w"] for x in (one, other)]
    assert sums[0] != sums[1]
