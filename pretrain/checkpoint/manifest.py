"""Checkpoint directories: names, the manifest that completes one, verification, the newest good one.

A checkpoint is `<run>/checkpoints/step-XXXXXXXX/`. It is written under `.writing-...` and renamed when its
manifest, the last file, is on disk; so a directory with the right name is complete unless the disk lied,
which `verify` finds out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from pretrain.checkpoint.files import fingerprint, write_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
CONFIG = "config.yaml"
_NAME = re.compile(r"step-(\d{8})")
_ASIDE = re.compile(r"step-(\d{8})\.replaced-\d+")
_OWN_HASH = "manifest_xxh3"
_READERS = 8
"""Files that are hashed at a time."""


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged or does not fit; the message names it and says what to do."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Found:
    """The newest good checkpoint of a run, and what was passed over on the way to it."""

    directory: Path | None
    passed_over: tuple[str, ...]
    """One sentence for each damaged or half-written checkpoint."""
    damaged: int = 0
    """How many were complete once and do not verify now."""


def checkpoints_directory(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def step_directory(run_dir: Path, step: int) -> Path:
    """Directory of the checkpoint after optimizer step `step`."""
    return checkpoints_directory(run_dir) / f"step-{step:08d}"


def step_of(directory: Path) -> int:
    """The step in a checkpoint directory's name, also of one that was set aside."""
    return int(directory.name.removeprefix("step-").partition(".")[0])


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Finished checkpoint directories, oldest first; not yet verified.

    One that was set aside counts as long as the one that replaces it has not got its name: a job may have
    been killed in between.
    """
    root = checkpoints_directory(run_dir)
    found = [path for path in root.glob("step-*") if path.is_dir()] if root.is_dir() else []
    named = {path.name for path in found if _NAME.fullmatch(path.name)}
    return sorted(path for path in found if path.name in named or _is_orphan(path, named))


def list_set_aside(run_dir: Path) -> list[Path]:
    """Directories of checkpoints that others replaced."""
    return sorted(p for p in checkpoints_directory(run_dir).glob("step-*") if _ASIDE.fullmatch(p.name))


def _is_orphan(path: Path, named: set[str]) -> bool:
    return bool(_ASIDE.fullmatch(path.name)) and path.name.partition(".")[0] not in named


def absent(directory: Path) -> CheckpointError:
    """The error of a checkpoint that is not there; names those beside it."""
    run_dir = directory.parent.parent
    inside = directory.parent == checkpoints_directory(run_dir)
    beside = ", ".join(path.name for path in list_checkpoints(run_dir)) if inside else ""
    return CheckpointError(f"{directory}: no such checkpoint{f'; there are {beside}' if beside else ''}")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: If it is missing, unreadable or of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not directory.exists():
            raise absent(directory) from None
        raise CheckpointError(f"{directory}: no {MANIFEST}, so this is not a complete checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: not a checkpoint manifest of format {FORMAT_VERSION}")
    if manifest.pop(_OWN_HASH, None) != _own_hash(manifest):
        raise CheckpointError(f"{path}: content does not match its hash")
    if any(Path(name).name != name for name in manifest["files"]):
        raise CheckpointError(f"{path}: names files outside of its directory")
    return manifest


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, with its format and a hash of itself; the last file of a checkpoint."""
    content = json.loads(json.dumps({**manifest, "format_version": FORMAT_VERSION}))
    write_json(directory / MANIFEST, content | {_OWN_HASH: _own_hash(content)})


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return str(xxhash.xxh3_128(json.dumps(manifest, sort_keys=True).encode()).hexdigest())


def verify(directory: Path) -> list[str]:
    """Every disagreement between a checkpoint and its manifest; empty when it is whole."""
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return [str(error)]
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(lambda item: _damage(directory / item[0], item[1]), manifest["files"].items())
        return [problem for problem in found if problem]


def find_newest(
    run_dir: Path,
    until_step: int | None = None,
    suits: Callable[[dict[str, Any]], bool] = lambda trainer: True,
) -> Found:
    """The newest checkpoint that verifies; damaged ones are reported and left for inspection.

    Args:
        run_dir: the run.
        until_step: pass over later ones.
        suits: pass over those whose trainer state does not suit.
    """
    passed_over = [
        f"{path}: half-written, ignored" for path in checkpoints_directory(run_dir).glob(".writing-*")
    ]
    finished = list_checkpoints(run_dir)
    if until_step is not None:
        finished = [path for path in finished if step_of(path) <= until_step]
    for damaged, directory in enumerate(reversed(finished)):
        problems = verify(directory)
        if not problems and not suits(read_manifest(directory)["trainer"]):
            continue
        if not problems:
            return Found(directory, tuple(passed_over), damaged)
        passed_over.append(f"{problems[0]}; passed over")
    return Found(None, tuple(passed_over), len(finished))


def find_checkpoint(path: Path) -> Path:
    """A verified checkpoint from a run directory (its newest good one) or from a checkpoint directory itself.

    Raises:
        CheckpointError: If there is none, or the one named is damaged.
    """
    if _NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        problems = verify(path)
        if problems:
            raise CheckpointError("; ".join(problems))
        return path
    found = find_newest(path)
    if found.directory is None:
        details = "".join(f"\n  - {text}" for text in found.passed_over)
        raise CheckpointError(
            f"{path}: no usable checkpoint (looked in {checkpoints_directory(path)}){details}"
        )
    return found.directory


@contextmanager
def wanted_by(key: str) -> Iterator[None]:
    """Begin the errors of a block that finds or reads a checkpoint with the key of the config that names it.

    Raises:
        CheckpointError: As the block raised it, behind "key: ".
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error


def described_layout(topology: Mapping[str, Any]) -> str:
    """One layout in words, from a manifest."""
    return (
        f"TP {topology['tensor_model_parallel_size']} x DP {topology['data_parallel_size']}, "
        f"ZeRO {topology['zero_stage']}, {topology['precision']}"
    )


def _damage(path: Path, expected: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path}: {size} bytes, expected {expected['bytes']}"
        return None if fingerprint(path) == expected else f"{path}: content does not match its hash"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
