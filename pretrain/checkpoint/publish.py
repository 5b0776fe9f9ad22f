"""From the shares that all ranks wrote to a checkpoint with its name.

Every rank writes its share into a hidden directory and leaves a note when it is on the disk. The main rank
waits for all notes, adds small files and, last, the manifest, and renames the directory; a probe that
comes later is added then. Nobody else waits, no collective is needed: all of this can happen while training
goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pretrain.checkpoint.files import fingerprint, flush, write_json
from pretrain.checkpoint.manifest import (
    CheckpointError,
    checkpoints_directory,
    list_checkpoints,
    list_set_aside,
    read_manifest,
    step_directory,
    step_of,
    write_manifest,
)
from pretrain.checkpoint.probe import PROBE
from pretrain.checkpoint.proof import add_up, fingerprints
from pretrain.checkpoint.snapshot import Snapshot
from pretrain.checkpoint.state_file import write_state_file
from pretrain.config import exit_codes
from pretrain.config.schema import CheckpointConfig
from pretrain.faults import fault

WRITING, REMOVING = ".writing-", ".removing-"
PEER_SECONDS = 3600.0
"""How long the main rank waits for the share of another one."""
_POLL_SECONDS = 0.05


class CheckpointWriteError(CheckpointError):
    """A checkpoint that could not be written, on some rank; earlier ones are untouched."""

    exit_code = exit_codes.STORAGE


def staging_directory(run_dir: Path, step: int, attempt: str) -> Path:
    """Where an attempt writes a checkpoint before it has its name; two attempts never share one."""
    return checkpoints_directory(run_dir) / f"{WRITING}{step_directory(run_dir, step).name}.{attempt}"


def write_share(snapshot: Snapshot, staging: Path) -> None:
    """Write this rank's state, and a note that it is there or why it is not.

    Raises:
        OSError: It could not be written; the note says so, too, if it still fits.
    """
    place = snapshot.place
    note = staging / f"rank-{place.rank:05d}.note"
    try:
        snapshot.state.make()
        staging.mkdir(parents=True, exist_ok=True)
        fault("save.begin")
        metadata = {"fragments": json.dumps([asdict(fragment) for fragment in snapshot.fragments])}
        found = write_state_file(staging / place.file_name, snapshot.state.tensors, metadata)
        sums = fingerprints(snapshot.state.tensors, snapshot.fragments, snapshot.layouts, place)
        write_json(note, {"files": {place.file_name: found}, "fingerprints": sums})
        fault("save.share")
    except OSError as error:
        with suppress(OSError):  # a full disk mostly has room for a name; without it `settle` tells
            note.with_suffix(f".failed-{error.errno}").touch()
        raise


def publish(
    snapshot: Snapshot,
    staging: Path,
    keep: CheckpointConfig,
    check: Callable[[], None],
    given_up: threading.Event,
) -> Path:
    """Complete a checkpoint on the main rank and give it its name; then remove those no longer kept.

    Waits for the notes of all ranks. A probe that is not there yet is waited for when the checkpoint has its
    name, and added.

    Args:
        snapshot: of the main rank.
        staging: where all ranks write.
        keep: how many stay.
        check: raises when the run is no longer ours.
        given_up: set when shares that are not there yet are not to be waited for.

    Raises:
        OSError, CheckpointWriteError: It was not written; what there was of it is removed.
    """
    probe, contents = snapshot.probe, dict(snapshot.contents)
    try:
        notes = _await_notes(staging, snapshot.place.world_size, given_up)
        files = {name: found for note in notes for name, found in note["files"].items()}
        manifest = snapshot.manifest | {"fingerprints": add_up(note["fingerprints"] for note in notes)}
        if probe and probe.is_there and (found := probe.wait()):
            manifest["probe_loss"], contents[PROBE] = found
        for path in staging.glob("*.note"):
            path.unlink()
        check()
        final = step_directory(snapshot.run_dir, snapshot.step)
        complete(staging, final, {"files": files, **manifest}, contents)
    except (OSError, CheckpointWriteError):
        shutil.rmtree(staging, ignore_errors=True)
        raise
    fault("save.published")
    prune(snapshot.run_dir, final, keep.keep_last, keep.keep_every)
    if probe and PROBE not in contents and (found := probe.wait()):
        add_probe(final, *found)
    return final


def add_probe(directory: Path, loss: float, content: bytes) -> None:
    """Add the probe to a complete checkpoint; a process that dies here leaves it complete, too."""
    (directory / PROBE).write_bytes(content)
    flush(directory / PROBE)
    fault("save.probe")
    manifest = read_manifest(directory)
    files = {**manifest["files"], PROBE: fingerprint(directory / PROBE)}
    write_manifest(directory, {**manifest, "files": files, "probe_loss": loss})


def complete(staging: Path, final: Path, manifest: Mapping[str, Any], contents: Mapping[str, bytes]) -> None:
    """Add small files and manifest, flush, and give the directory its name.

    Args:
        staging: holds the state files.
        final: the name.
        manifest: with the `files` so far.
        contents: small files by name.
    """
    files = dict(manifest["files"])
    for name, content in contents.items():
        (staging / name).write_bytes(content)
    for name in contents:
        flush(staging / name)
        files[name] = fingerprint(staging / name)
    versions = {name: version(name) for name in ("torch", "deepspeed", "megatron-core")}
    fault("save.manifest")
    write_manifest(staging, {**manifest, "files": files, "versions": versions})
    fault("save.rename")
    if final.exists():  # written by an attempt whose run then went back to an earlier step, or damaged
        _set_aside(final)
    os.rename(staging, final)
    flush(final.parent)


def prune(run_dir: Path, newest: Path, keep_last: int, keep_every: int = 0) -> None:
    """Remove what need not stay, up to `newest`; later checkpoints are damaged or of a lost branch.

    Args:
        run_dir: the run.
        newest: the checkpoint that was just published.
        keep_last: how many stay.
        keep_every: those of multiples of so many steps stay as well; 0 for none.
    """
    root = checkpoints_directory(run_dir)
    past = [path for path in list_checkpoints(run_dir) if step_of(path) <= step_of(newest)]
    doomed = [path for path in past[:-keep_last] if not (keep_every and step_of(path) % keep_every == 0)]
    doomed += [path for path in list_set_aside(run_dir) if step_of(path) < step_of(past[-keep_last:][0])]
    doomed = list(dict.fromkeys(doomed))
    unfinished = [*root.glob(f"{WRITING}*"), *root.glob(f"{REMOVING}*")]  # of attempts that died
    for path in doomed:
        remove(path)
    for path in unfinished:
        _remove_tree(path)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, never half of it under its good name; what cannot be removed is told and stays."""
    try:
        checkpoint = checkpoint.rename(checkpoint.with_name(f"{REMOVING}{checkpoint.name}"))
    except OSError as error:
        print(f"warning: {checkpoint}: cannot be removed: {error.strerror}", flush=True)
        return
    fault("save.prune")
    _remove_tree(checkpoint)


def _remove_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        print(f"warning: {path}: cannot be removed: {error.strerror}", flush=True)


def _await_notes(staging: Path, world_size: int, given_up: threading.Event) -> list[dict[str, Any]]:
    """The notes of all ranks.

    Raises:
        CheckpointWriteError: one failed, or did not come.
    """
    deadline = time.monotonic() + PEER_SECONDS
    missing = set(range(world_size))
    while missing and time.monotonic() < deadline:
        names = set(os.listdir(staging)) if staging.is_dir() else set()
        for problem in _failures(names):
            raise CheckpointWriteError(problem)
        missing = {rank for rank in missing if f"rank-{rank:05d}.note" not in names}
        if missing and given_up.is_set():
            raise CheckpointWriteError("another rank could not write its share")
        if missing:
            time.sleep(_POLL_SECONDS)
    if missing:
        ranks = ", ".join(map(str, sorted(missing)[:8]))
        raise CheckpointWriteError(f"ranks {ranks} did not write their share within {PEER_SECONDS:.0f} s")
    paths = [staging / f"rank-{rank:05d}.note" for rank in range(world_size)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _failures(names: set[str]) -> Iterator[str]:
    for name in sorted(names):
        rank, failed, code = name.partition(".failed-")
        if failed:
            yield f"rank {int(rank.removeprefix('rank-'))}: {os.strerror(int(code))}"


def _set_aside(directory: Path) -> None:
    number = 1
    while (aside := directory.with_name(f"{directory.name}.replaced-{number}")).exists():
        number += 1
    os.rename(directory, aside)
