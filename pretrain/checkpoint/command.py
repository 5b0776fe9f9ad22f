"""`headwater checkpoints`: what a run has saved, whether it is whole, what is in it. Needs no torch."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pretrain.checkpoint.manifest import (
    CONFIG,
    MANIFEST,
    CheckpointError,
    absent,
    checkpoints_directory,
    described_layout,
    list_checkpoints,
    read_manifest,
    verify,
)

EXAMPLES = """examples:
  headwater checkpoints list runs/gpt-tiny
  headwater checkpoints verify runs/gpt-tiny                             every checkpoint of the run
  headwater checkpoints show runs/gpt-tiny/checkpoints/step-00001000     without a step: the newest

exit codes: 0 whole, 2 damaged or not there
"""
HEAD = ("step", "saved", "GB", "layout", "state")


def main(argv: Sequence[str]) -> int:
    """Run `headwater checkpoints ARGV`."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments.directory, arguments.json)
    return code


def list_(run_dir: Path, as_json: bool) -> int:
    """Print a line for each checkpoint; manifests are read, files are not."""
    found = [_summary(directory) for directory in _checkpoints(run_dir)]
    leftovers = [str(path) for path in _leftovers(run_dir)]
    if as_json:
        print(json.dumps({"checkpoints": found, "leftovers": leftovers}, indent=1))
        return 0
    rows = [HEAD, *(_row(entry) for entry in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for path in leftovers:
        print(f"not a checkpoint: {path}")
    return 0


def verify_(directory: Path, as_json: bool) -> int:
    """Compare every file with its size and xxh3 in the manifest.

    Raises:
        CheckpointError: a checkpoint is damaged; what is wrong has been printed.
    """
    problems = {str(path): verify(path) for path in _checkpoints(directory)}
    if as_json:
        print(json.dumps(problems, indent=1))
    else:
        for path, found in problems.items():
            print("\n".join(f"DAMAGED {text}" for text in found) or f"whole   {path}")
    damaged = sum(bool(found) for found in problems.values())
    if damaged:
        raise CheckpointError(
            f"{damaged} of {len(problems)} checkpoints damaged; a run passes them over when it goes on"
        )
    return 0


def show(directory: Path, as_json: bool) -> int:
    """Print what a checkpoint holds: step, topology, versions, cursor, config, parameters."""
    path = _checkpoints(directory)[-1]
    manifest = read_manifest(path)
    if as_json:
        print(json.dumps({"directory": str(path)} | manifest, indent=1))
        return 0
    print("\n".join(_described(path, manifest)))
    return 0


def _checkpoints(directory: Path) -> list[Path]:
    """The checkpoint that `directory` is, or those of the run, oldest first.

    Raises:
        CheckpointError: there is none.
    """
    if directory.parent == checkpoints_directory(directory.parent.parent) and not directory.exists():
        raise absent(directory)
    if (directory / MANIFEST).exists() or directory in list_checkpoints(directory.parent.parent):
        return [directory]
    found = list_checkpoints(_run_of(directory))
    if not found:
        raise CheckpointError(
            f"{directory}: no checkpoint, and none in {checkpoints_directory(directory)}; give a run "
            "directory or a checkpoint directory"
        )
    return found


def _run_of(directory: Path) -> Path:
    """The run directory, also where its `checkpoints` is named."""
    inside = directory == checkpoints_directory(directory.parent) and directory.is_dir()
    return directory.parent if inside else directory


def _leftovers(directory: Path) -> list[Path]:
    """What interrupted or replaced saves left beside the checkpoints."""
    run_dir = _run_of(directory)
    root = checkpoints_directory(run_dir)
    known = set(list_checkpoints(run_dir))
    return sorted(path for path in root.iterdir() if path not in known) if root.is_dir() else []


def _summary(directory: Path) -> dict[str, Any]:
    """One entry of the list."""
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return {"directory": str(directory), "damage": str(error)}
    saved = datetime.fromtimestamp((directory / MANIFEST).stat().st_mtime).astimezone()
    return {
        "directory": str(directory),
        "step": manifest["step"],
        "saved": saved.isoformat(timespec="seconds"),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "topology": manifest["topology"],
        "damage": _missing(directory, manifest),
    }


def _missing(directory: Path, manifest: Mapping[str, Any]) -> str | None:
    """Damage that shows without reading."""
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            return f"{path}: missing or of another size"
    return None


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    state = f"DAMAGED {entry['damage']}" if entry["damage"] else "complete"
    if "step" not in entry:
        return (Path(entry["directory"]).name, "", "", "", state)
    size = f"{entry['bytes'] / 1e9:.3f}"
    return (str(entry["step"]), entry["saved"], size, described_layout(entry["topology"]), state)


def _described(path: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    trainer = manifest["trainer"]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    parameters = manifest["parameters"]
    total = sum(math.prod(layout["shape"]) for layout in parameters.values())
    yield f"checkpoint  {path}"
    yield f"step        {manifest['step']} ({manifest['optimizer_steps']} updates applied)"
    yield f"saved at    {described_layout(manifest['topology'])}"
    yield f"versions    {versions}"
    for name in sorted(set(trainer) - {"step"}):
        text = json.dumps(trainer[name])
        yield f"{name:<11} {text if len(text) <= 200 else text[:200] + '...'}"
    yield f"files       {len(manifest['files'])}"
    for name, file in sorted(manifest["files"].items()):
        yield f"  {name}  {file['bytes']} bytes  xxh3 {file['xxh3']}"
    yield f"parameters  {len(parameters)}, {total:,} elements in fp32"
    width = max(map(len, parameters), default=0)
    for name, layout in parameters.items():
        split = "" if layout["tp_dim"] is None else f"  split over TP in dimension {layout['tp_dim']}"
        yield f"  {name:<{width}}  {'x'.join(map(str, layout['shape']))}{split}"
    yield f"{CONFIG}:"
    yield (path / CONFIG).read_text(encoding="utf-8").rstrip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater checkpoints",
        description="Look at the checkpoints of a run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("list", list_, "step, time, size and layout of each"),
        ("verify", verify_, "read every file and compare it with the manifest"),
        ("show", show, "step, layout, versions, data cursor, files, parameters, config"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("directory", type=Path, metavar="DIR", help="run or checkpoint directory")
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=run)
    return parser
