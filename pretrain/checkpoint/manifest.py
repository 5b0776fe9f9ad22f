"""Checkpoint directories: names, the manifest that completes one, verification, the newest good one.

A checkpoint is `<run>/checkpoints/step-XXXXXXXX/`. It is written under `.writing-...` and renamed when its
manifest, the last file, is on disk; so a directory with the right name is complete unless the disk lied,
which `verify` finds out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.files import fingerprint

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.yaml"
_NAME = re.compile(r"step-(\d{8})")


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
    """The step in a checkpoint directory's name."""
    return int(directory.name.removeprefix("step-"))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Finished checkpoint directories, oldest first; not yet verified."""
    root = checkpoints_directory(run_dir)
    return (
        sorted(p for p in root.glob("step-*") if p.is_dir() and _NAME.fullmatch(p.name))
        if root.is_dir()
        else []
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: If it is missing, unreadable or of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: no {MANIFEST}, so this is not a complete checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: not a checkpoint manifest of format {FORMAT_VERSION}")
    return manifest


def verify(directory: Path) -> list[str]:
    """Every disagreement between a checkpoint and its manifest; empty when it is whole."""
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return [str(error)]
    return list(_damage(directory, manifest))


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
        finished = [path for path in finished if path.name <= step_directory(run_dir, until_step).name]
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


def _damage(directory: Path, manifest: dict[str, Any]) -> Iterator[str]:
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            yield f"{path}: missing"
        elif path.stat().st_size != expected["bytes"]:
            yield f"{path}: {path.stat().st_size} bytes, expected {expected['bytes']}"
        elif fingerprint(path) != expected:
            yield f"{path}: content does not match its hash"
