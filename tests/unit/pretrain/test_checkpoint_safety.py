"""A checkpoint of unknown origin, its manifest and hashes in order, runs no code."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import CheckpointError, find_checkpoint, read_config, read_parameters
from pretrain.checkpoint.files import fingerprint
from pretrain.checkpoint.manifest import read_manifest, write_manifest
from tests.unit.pretrain.test_checkpoint_files import state_file, write

REPO = Path(__file__).resolve().parents[3]


class Payload:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (self._mark,)  # type: ignore[return-value]


def signed(directory: Path, path: Path) -> None:
    """Put the hash of a changed file into the manifest, as an attacker would."""
    manifest = read_manifest(directory)
    manifest["files"][path.name] = fingerprint(path)
    write_manifest(directory, manifest)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_pickles_in_place_of_state_are_refused_unread(tmp_path: Path, kind: str) -> None:
    directory, mark = write(tmp_path, 3), tmp_path / "payload-ran"
    path, payload = state_file(directory), {"master/0": Payload(mark)}
    if kind == "torch":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    signed(directory, path)
    assert find_checkpoint(tmp_path) == directory  # all hashes fit
    with pytest.raises(CheckpointError, match="not a state file of headwater"):
        read_parameters(directory)
    assert not mark.exists()
    if kind == "pickle":
        pickle.loads(path.read_bytes())  # it would have run
        assert mark.exists()


def test_a_config_with_python_objects_is_refused(tmp_path: Path) -> None:
    directory, mark = write(tmp_path, 3), tmp_path / "payload-ran"
    path = directory / "config.yaml"
    path.write_text(f"model: !!python/object/apply:os.mkdir [{str(mark)!r}]\n")
    signed(directory, path)
    with pytest.raises(CheckpointError, match=r"config\.yaml: cannot be read"):
        read_config(directory)
    assert not mark.exists()


def test_a_manifest_names_no_files_elsewhere(tmp_path: Path) -> None:
    directory = write(tmp_path, 3)
    manifest = read_manifest(directory)
    (tmp_path / "secret").write_text("x")
    manifest["files"]["../../secret"] = fingerprint(tmp_path / "secret")
    write_manifest(directory, manifest)
    with pytest.raises(CheckpointError, match="outside of its directory"):
        find_checkpoint(directory)
    assert json.loads((directory / "manifest.json").read_text())["files"].keys() >= {"../../secret"}


def test_no_source_of_ours_unpickles() -> None:
    """torch.load only with weights_only=True; no pickle.load."""
    for package in ("pretrain", "finetune", "launch"):
        for path in (REPO / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    called = ast.unparse(node.func)
                    assert called not in ("pickle.load", "pickle.loads"), path
                    if called == "torch.load":
                        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                        assert given.get("weights_only") == "True", path
