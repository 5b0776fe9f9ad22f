"""Durable files: write, flush to disk, hash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xxhash

_CHUNK = 16 * 1024 * 1024


def flush(path: Path) -> None:
    """Force a file's (or directory's) content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole: temporary name, flush, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def fingerprint(path: Path) -> dict[str, int | str]:
    """Size in bytes and xxh3_128 of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "xxh3": digest.hexdigest()}
