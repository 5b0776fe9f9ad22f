"""Checkpoint directories without an engine: verification, choice, merging and splitting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import (
    CheckpointError,
    find_checkpoint,
    find_newest,
    read_config,
    read_parameters,
    write_parameters,
)
from pretrain.checkpoint.layout import ParameterLayout
from pretrain.checkpoint.manifest import list_checkpoints, read_manifest, step_directory, verify
from pretrain.checkpoint.publish import prune
from pretrain.config import load_config

TINY = Path(__file__).resolve().parents[3] / "configs" / "gpt" / "tiny.yaml"
PARAMETERS = {"a.weight": torch.arange(12.0).view(4, 3), "a.bias": torch.tensor([1.5, -2.0])}


def write(run_dir: Path, step: int) -> Path:
    directory = step_directory(run_dir, step)
    layouts = {name: ParameterLayout(tuple(tensor.shape), None) for name, tensor in PARAMETERS.items()}
    write_parameters(directory, PARAMETERS, layouts, load_config(TINY), {})
    return directory


def test_parameters_and_config_come_back(tmp_path: Path) -> None:
    directory = write(tmp_path, 3)
    assert verify(directory) == []
    read = read_parameters(directory)
    assert read.keys() == PARAMETERS.keys()
    assert all(torch.equal(read[name], PARAMETERS[name]) for name in PARAMETERS)
    assert read_config(directory)["model"]["num_layers"] == 2
    assert find_checkpoint(tmp_path) == directory
    assert find_checkpoint(directory) == directory


def state_file(directory: Path) -> Path:
    return next(directory.glob("state-*"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_unreadable(path: Path) -> None:
    """A link to itself: every access is an OSError other than "not found"."""
    path.unlink()
    path.symlink_to(path)


def change_manifest(directory: Path, old: str, new: str) -> None:
    path = directory / "manifest.json"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


DAMAGE = {
    "truncated": lambda d: truncate(state_file(d)),
    "flipped": lambda d: flip(state_file(d)),
    "missing file": lambda d: state_file(d).unlink(),
    "no manifest": lambda d: (d / "manifest.json").unlink(),
    "empty manifest": lambda d: (d / "manifest.json").write_text(""),
    "other format": lambda d: (d / "manifest.json").write_text(json.dumps({"format_version": 99})),
    "manifest without files": lambda d: (d / "manifest.json").write_text('{"format_version": 2}'),
    "step changed": lambda d: change_manifest(d, '"optimizer_steps": 0', '"optimizer_steps": 4'),
    "unreadable file": lambda d: make_unreadable(state_file(d)),
    "config edited": lambda d: (d / "config.yaml").write_text("seed: 1\n"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, damage: str) -> None:
    good, bad = write(tmp_path, 3), write(tmp_path, 6)
    DAMAGE[damage](bad)
    found = find_newest(tmp_path)
    assert found.directory == good
    assert str(bad) in found.passed_over[0]
    with pytest.raises(CheckpointError, match="step-00000006"):
        find_checkpoint(bad)


def test_a_half_written_directory_is_reported_not_used(tmp_path: Path) -> None:
    write(tmp_path, 3).rename(tmp_path / "checkpoints" / ".writing-step-00000003")
    found = find_newest(tmp_path)
    assert found.directory is None
    assert "half-written" in found.passed_over[0]
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        find_checkpoint(tmp_path)


def test_one_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path, 3)
    with pytest.raises(CheckpointError, match="step-00000004: no such checkpoint; there are step-00000003"):
        read_manifest(tmp_path / "checkpoints" / "step-00000004")
    with pytest.raises(CheckpointError, match="elsewhere: no such checkpoint$"):
        read_manifest(tmp_path / "elsewhere")


def test_writing_the_same_step_again_keeps_the_old_one_aside(tmp_path: Path) -> None:
    flip(state_file(write(tmp_path, 3)))
    assert verify(write(tmp_path, 3)) == []
    assert (tmp_path / "checkpoints" / "step-00000003.replaced-1").is_dir()
    assert find_newest(tmp_path).directory == step_directory(tmp_path, 3)


def test_one_set_aside_counts_until_the_one_that_replaces_it_has_its_name(tmp_path: Path) -> None:
    """A job that saved a step again and was killed between the two renames has lost nothing."""
    aside = write(tmp_path, 6).rename(tmp_path / "checkpoints" / "step-00000006.replaced-1")
    assert find_newest(tmp_path).directory == aside
    write(tmp_path, 3)
    assert find_newest(tmp_path).directory == aside
    assert find_newest(tmp_path, until_step=5).directory == step_directory(tmp_path, 3)
    write(tmp_path, 6)
    assert find_newest(tmp_path).directory == step_directory(tmp_path, 6)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000006"]
    prune(tmp_path, step_directory(tmp_path, 6), keep_last=1)
    assert aside.exists()
    prune(tmp_path, write(tmp_path, 9), keep_last=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000009"]


def test_pruning_counts_back_from_the_checkpoint_just_written(tmp_path: Path) -> None:
    """After a fallback, damaged later checkpoints must not push out the good one that was just written."""
    for step in (1, 2, 3, 8, 9):
        write(tmp_path, step)
    for step in (8, 9):
        flip(state_file(step_directory(tmp_path, step)))
    prune(tmp_path, step_directory(tmp_path, 3), keep_last=1)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-00000003", "step-00000008", "step-00000009"]
    assert find_newest(tmp_path).directory == step_directory(tmp_path, 3)


@pytest.mark.parametrize(("dim", "stride"), [(0, 1), (1, 1), (0, 2), (None, 1)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_merge_undoes_split(dim: int | None, stride: int, size: int) -> None:
    full = torch.randn(16, 8)
    layout = ParameterLayout((16, 8), dim, stride)
    shards = [layout.split(full, rank, size) for rank in range(size)]
    assert all(tuple(shard.shape) == layout.shard_shape(size) for shard in shards)
    assert torch.equal(layout.merge(shards), full)


def test_gated_halves_are_split_each() -> None:
    """With stride 2 each rank gets its part of the gate and its part of the up projection."""
    full = torch.arange(8.0).view(8, 1)
    assert ParameterLayout((8, 1), 0, 2).split(full, 1, 2).flatten().tolist() == [2.0, 3.0, 6.0, 7.0]
