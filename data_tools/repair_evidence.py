"""What is left of a corpus' tables and records, and how far it can be trusted when new tables are made."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.corpus_record import REPAIR_RECORD
from data_tools.errors import DataError
from data_tools.record import read_record
from data_tools.shard_format import BLOCKS_NAME, MANIFEST_NAME, Header, ShardInfo, parse_manifest
from data_tools.shard_scan import ScannedShard


def known_hashes(directory: Path, record: dict[str, Any] | None) -> set[str]:
    """Hashes of the manifests that this split is known to have had."""
    records = [record, read_record(directory.parent / REPAIR_RECORD)]
    return {
        one["splits"][directory.name]["manifest_xxh3"]
        for one in records
        if one and directory.name in one["splits"]
    }


def kept_manifest(directory: Path, scans: list[ScannedShard], proofs: set[str]) -> dict[str, Any] | None:
    """Content of manifest.json, if it is intact as far as can be told.

    Raises:
        DataError: it is, as its hash proves, and a shard is not.
    """
    try:
        raw = (directory / MANIFEST_NAME).read_bytes()
        content: dict[str, Any] = json.loads(raw)
        Header(**{field.name: content[field.name] for field in fields(Header)})
        entries = [replace(ShardInfo.from_json(entry), provenance=None) for entry in content["shards"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    wrong = next((i for i, scan in enumerate(scans) if entries[i : i + 1] != [scan.info]), None)
    proven = manifest_hash(directory) in proofs or (not proofs and _goes_with_blocks(directory, raw))
    if proven and (wrong is not None or len(entries) != len(scans)):
        named = scans[wrong or 0].info.path
        raise DataError(
            f"shard {directory / named} is not the one that {MANIFEST_NAME} lists, and that is intact: "
            "restore the shard; `headwater data verify` shows the damage"
        )
    trusted = proven or (not proofs and wrong is None and len(entries) == len(scans))
    return content if trusted else None


def _goes_with_blocks(directory: Path, raw: bytes) -> bool:
    """Whether manifest.json and blocks.npy confirm each other."""
    try:
        parse_manifest(raw, (directory / BLOCKS_NAME).read_bytes(), str(directory), directory)
    except (OSError, DataError):
        return False
    return True


def manifest_hash(directory: Path) -> str | None:
    """Hash of a directory's manifest.json, or None without one."""
    try:
        return xxhash.xxh3_128_hexdigest((directory / MANIFEST_NAME).read_bytes())
    except OSError:
        return None


def check_old_blocks(directory: Path, rows: npt.NDArray[np.void]) -> None:
    """Raise a DataError if a blocks.npy that can be read names other blocks than the shards hold."""
    try:
        old = np.load(directory / BLOCKS_NAME, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return
    if old.dtype != rows.dtype or old.shape != rows.shape:
        return
    if len(wrong := np.flatnonzero(old != rows)):
        row = rows[wrong[0]]
        shard = directory / f"{directory.name}-{int(row['shard']):05d}.tar"
        raise DataError(
            f"shard {shard}, block {int(row['key']):06d} is not what {directory / BLOCKS_NAME} says: one is "
            f"damaged. Restore the shard, or remove {BLOCKS_NAME} if you know that the shard is good"
        )
