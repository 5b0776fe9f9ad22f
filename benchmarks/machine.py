"""What a benchmark ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("torch", "deepspeed", "megatron-core", "transformers")


def describe(packages: Sequence[str] = PACKAGES) -> str:
    """Processor, cores, versions and commit, in one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{os.cpu_count()} cores of {processor()}; {versions}; commit {commit()}"


def processor() -> str:
    """The processor's name and its matrix instructions, which decide what bf16 can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    by_name = {name.strip(): value.strip() for name, value in fields.items()}
    flags = by_name.get("flags", "").split()
    fast = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return f"{by_name.get('model name', platform.processor())} ({', '.join(fast) or 'no bf16 instructions'})"


def commit() -> str:
    """The source's commit, marked when files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"
