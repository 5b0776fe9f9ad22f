"""The probe of a checkpoint that comes after its snapshot: offered by a step, computed, or never there."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from pretrain import saving
from pretrain.checkpoint import probe as probing
from pretrain.checkpoint import publish as publishing
from pretrain.checkpoint import writer as writing
from pretrain.checkpoint.manifest import read_manifest, step_directory, verify
from pretrain.checkpoint.probe import PROBE, Probe, trains_as_it_evaluates
from pretrain.checkpoint.writer import CheckpointWriter
from pretrain.config.schema import CheckpointConfig
from pretrain.saving import Position, Saves
from tests.support.saving import job_that_saves
from tests.support.training import Layout, tiny_config
from tests.unit.pretrain.test_checkpoint_writing import snapshot


def batch(token: int) -> dict[str, Any]:
    return {"tokens": np.full((2, 4), token)}


def written(run_dir: Path, step: int = 3) -> tuple[float | None, int | None]:
    """Loss and token of a checkpoint's probe."""
    directory = step_directory(run_dir, step)
    assert verify(directory) == []
    loss, path = read_manifest(directory).get("probe_loss"), directory / PROBE
    token = int(safetensors.numpy.load_file(path)["tokens"][0, 0]) if path.exists() else None
    return loss, token


def start(run_dir: Path, probe: Probe) -> CheckpointWriter:
    writer = CheckpointWriter(CheckpointConfig(), "now", lambda: None)
    writer.start(dataclasses.replace(snapshot(run_dir), probe=probe))
    return writer


def end(writer: CheckpointWriter) -> None:
    writer.wait(10.0)
    assert not writer.writing and not writer.failed


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of the probes whose loss was computed; it is their token + 0.5."""
    tokens: list[int] = []

    def probe_loss(engine: Any, batch: dict[str, Any]) -> float:
        tokens.append(int(batch["tokens"][0, 0]))
        return tokens[-1] + 0.5

    monkeypatch.setattr(probing, "probe_loss", probe_loss)
    return tokens


def test_a_checkpoint_is_complete_before_its_probe(tmp_path: Path, computed: list[int]) -> None:
    probe = Probe(batch(1))
    writer = start(tmp_path, probe)
    wait_for_name(tmp_path)
    assert verify(step_directory(tmp_path, 3)) == [] and written(tmp_path) == (None, None)
    assert writer.writing  # a second save, and the end of the job, wait for the probe
    probe.offer(batch(2), 2.25)
    end(writer)
    assert verify(step_directory(tmp_path, 3)) == []
    probe.offer(batch(3), 3.25)
    probe.settle(None)  # type: ignore[arg-type]
    assert written(tmp_path) == (2.25, 2) and computed == []


def test_a_death_between_probe_and_manifest_leaves_a_checkpoint_without_a_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(point: str) -> None:
        if point == "save.probe":
            raise OSError("dead")

    monkeypatch.setattr(publishing, "fault", die)
    probe = Probe(batch(1))
    writer = start(tmp_path, probe)
    wait_for_name(tmp_path)
    probe.offer(batch(2), 2.25)
    writer.wait(10.0)
    assert writer.failed
    assert verify(step_directory(tmp_path, 3)) == []
    assert "probe_loss" not in read_manifest(step_directory(tmp_path, 3))


def wait_for_name(run_dir: Path) -> None:
    deadline = time.monotonic() + 60.0
    while not step_directory(run_dir, 3).exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_what_was_offered_first_stays(computed: list[int]) -> None:
    probe = Probe(batch(1))
    probe.offer(batch(2), 2.25)
    probe.offer(batch(3), 3.25)
    found = probe.wait()
    assert found and found[0] == 2.25 and safetensors.numpy.load(found[1])["tokens"][0, 0] == 2


def test_what_was_not_offered_is_computed_once(tmp_path: Path, computed: list[int]) -> None:
    probe = Probe(batch(1))
    writer = start(tmp_path, probe)
    probe.settle(None)  # type: ignore[arg-type]
    probe.settle(None)  # type: ignore[arg-type]
    end(writer)
    assert written(tmp_path) == (1.5, 1) and computed == [1]


def late(probe: Probe) -> None:
    """The thread that trains hangs."""


@pytest.mark.parametrize(
    "act",
    [
        late,
        Probe.close,
        lambda probe: probe.offer(batch(2), math.nan),
        lambda probe: probe.offer(batch(2), math.inf),
    ],
)
def test_without_a_finite_loss_a_checkpoint_has_no_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Probe], None]
) -> None:
    monkeypatch.setattr(probing, "PENDING_SECONDS", 0.3 if act is late else 30.0)
    probe, began = Probe(batch(1)), time.monotonic()
    writer = start(tmp_path, probe)
    act(probe)
    end(writer)
    assert written(tmp_path) == (None, None)
    assert (time.monotonic() - began >= 0.3) or act is not late


def test_a_probe_without_a_batch_is_none(tmp_path: Path, computed: list[int]) -> None:
    probe = Probe(None)
    writer = start(tmp_path, probe)
    probe.settle(None)  # type: ignore[arg-type]
    end(writer)
    assert written(tmp_path) == (None, None) and computed == []


@pytest.fixture
def saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Saves]:
    """Of a job of one rank that writes for real, without process groups and engine."""

    def gather(into: list[Any], mine: Any) -> None:
        into[0] = mine

    alone = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: 1, all_gather_object=gather)
    monkeypatch.setattr(writing, "dist", alone)

    def take(_engine: Any, config: Any, trainer: Any, _files: Any, _memory: Any, probe: Probe) -> Any:
        return dataclasses.replace(snapshot(Path(config.run_dir), trainer["step"]), probe=probe)

    monkeypatch.setattr(saving, "take_snapshot", take)

    def make(dropout: float = 0.0, async_save: bool = True) -> Saves:
        config = tiny_config(
            "gpt",
            Layout(),
            str(tmp_path),
            model={"hidden_dropout": dropout},
            checkpoint={"async_save": async_save, "keep_last": 9},
        )
        job, nothing = job_that_saves(config)
        return Saves(job, nothing, nothing, Position(0))  # type: ignore[arg-type]

    return make


def test_a_second_save_computes_the_probe_that_the_first_one_waits_for(
    saves: Callable[..., Saves], tmp_path: Path, computed: list[int]
) -> None:
    """As after a return to a checkpoint: no step comes between."""
    with saves() as ours:
        ours.save(Position(3, probe=batch(1)))
        assert computed == []
        ours.save(Position(4, probe=batch(2)))
        assert computed == [1] and written(tmp_path, 3) == (1.5, 1)
        ours.offer_probe(batch(5), lambda: 5.25)
        ours.offer_probe(batch(6), lambda: pytest.fail("not asked for"))
        ours.save(Position(5, probe=batch(6)))
        assert computed == [1] and written(tmp_path, 4) == (5.25, 5)
        ours.finish(Position(5, probe=batch(6)))
    assert computed == [1, 6] and written(tmp_path, 5) == (6.5, 6)


def test_an_error_leaves_a_checkpoint_without_a_probe(
    saves: Callable[..., Saves], tmp_path: Path, computed: list[int]
) -> None:
    """Its ranks may be gone, so nothing can be computed together."""
    began = time.monotonic()
    with pytest.raises(ConnectionError), saves() as ours:
        ours.save(Position(3, probe=batch(1)))
        raise ConnectionError
    assert computed == [] and written(tmp_path, 3) == (None, None)
    assert time.monotonic() - began < 9.0  # not those of PEERS_SECONDS


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"async_save": False}])
def test_where_a_step_cannot_bring_it_a_save_computes_it(
    saves: Callable[..., Saves], tmp_path: Path, computed: list[int], settings: dict[str, Any]
) -> None:
    with saves(**settings) as ours:
        ours.save(Position(3, probe=batch(1)))
        assert computed == [1]
        ours.offer_probe(batch(2), lambda: pytest.fail("not asked for"))
        ours.finish(Position(3))
    assert computed == [1] and written(tmp_path, 3) == (1.5, 1)


def test_dropout_and_finetuning_make_another_function_of_a_training_forward() -> None:
    def made(**model: float) -> Any:
        return tiny_config("bert", Layout(), model=model)

    assert trains_as_it_evaluates(made())
    assert not trains_as_it_evaluates(made(hidden_dropout=0.1))
    assert not trains_as_it_evaluates(made(attention_dropout=0.1))
    assert not trains_as_it_evaluates(SimpleNamespace(model=made().model))  # type: ignore[arg-type]
