"""What one node of a job has, as one line of JSON: `srun python -m launch.node_facts ...`, a task a node.

Only the standard library, so that it answers within a second and also where an installation is broken.
`launch.preflight` compares the lines of all nodes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.machine import gpu_count

PREFIX = "HEADWATER-NODE "
PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "pydantic", "transformer-engine")
"""Packages that must be the same everywhere; one that is nowhere is fine."""

SOURCES = ("pretrain", "data_tools", "launch")
CONNECT_SECONDS = 10.0
GB = 10**9


def main(argv: Sequence[str] | None = None) -> int:
    """Print the facts."""
    args = _parse(argv)
    facts = {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "versions": versions(),
        "gpus": gpu_count(),
        "memory_gb": available_memory_gb(),
        "disk_gb": {path: free_gb(Path(path)) for path in [args.run_dir, *args.scratch]},
        "run_dir": run_directory_problem(Path(args.run_dir), args.token),
        "reach": reach_problem(args.reach) if args.reach else None,
        "time": time.time(),  # last: when the line is written
    }
    os.write(1, f"{PREFIX}{json.dumps(facts)}\n".encode())  # at once: the nodes share one stream
    return 0


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that are installed, and a hash of our own sources."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["headwater sources"] = _source_hash(Path(__file__).resolve().parents[1])
    return found


def available_memory_gb() -> float:
    """Memory that can be used without swapping (MemAvailable)."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert match is not None, "/proc/meminfo has no MemAvailable"
    return round(int(match[1]) * 1024 / GB, 1)


def free_gb(path: Path) -> float | None:
    """Free space where a directory is; None if it is not there."""
    try:
        return round(shutil.disk_usage(path).free / GB, 1)
    except OSError:
        return None


def run_directory_problem(run_dir: Path, token: str) -> str | None:
    """Why this run directory is not the one that the job's first node wrote a token into."""
    try:
        if token not in os.listdir(
            run_dir
        ):  # listing, as a network file system may cache that a name is absent
            return f"{run_dir} on this node is not the run's directory on the first node (stale mount?)"
        probe = run_dir / f"{token}.{os.environ.get('SLURM_NODEID', os.getpid())}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return f"cannot write {error.filename}: {error.strerror}"
    return None


def reach_problem(address: str) -> str | None:
    """Why the first node cannot be reached at HOST:PORT, where the ranks will meet."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return f"cannot reach {address}: {error.strerror or error}"
    return None


def _source_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for package in SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _parse(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="launch.node_facts", description="Print what this node has.")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--token", required=True, help="name of a file that must be in the run directory")
    parser.add_argument("--reach", metavar="HOST:PORT", help="where somebody listens")
    parser.add_argument("--scratch", action="append", default=[])
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
