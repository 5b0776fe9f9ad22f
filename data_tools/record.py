"""Which inputs and options an output was made from, so that a rerun can tell "done" from "other".

An output's record holds its options and, for each input file, size, time of change and content hash.
A rerun with the same options and inputs is complete already; any difference is an error that names it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from data_tools.errors import DataError
from data_tools.jsonl import Chunk, chunk_digest, plan_chunks


def describe_inputs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Path, size and time of change of each input, before it is read; hashes come later."""
    described = []
    for path in paths:
        status = path.stat()
        described.append({"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns})
    return described


def add_hashes(described: list[dict[str, Any]], chunks: Sequence[Chunk], digests: Sequence[bytes]) -> None:
    """Add "xxh3_128" to each input: the hash over the digests of its chunks.

    Raises:
        DataError: an input changed while it was read.
    """
    per_file: dict[int, list[bytes]] = defaultdict(list)
    for chunk, digest in zip(chunks, digests, strict=True):
        per_file[chunk.file_index].append(digest)
    for index, entry in enumerate(described):
        status = Path(entry["path"]).stat()
        if (status.st_size, status.st_mtime_ns) != (entry["bytes"], entry["mtime_ns"]):
            raise DataError(f"{entry['path']} changed while it was read: run again when it is complete")
        entry["xxh3_128"] = xxhash.xxh3_128_hexdigest(b"".join(per_file[index]))


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a complete output, or None if there is none.

    Raises:
        DataError: the file is there and is no record.
    """
    try:
        record = json.loads(path.read_bytes())
        record["options"], record["inputs"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): remove the output and run again") from error
    return dict(record)


def check_record(
    record: Mapping[str, Any], options: Mapping[str, Any], paths: Sequence[Path], output: Path
) -> None:
    """Check that an existing output was made from these options and inputs.

    Args:
        record: what `read_record` returned for it.
        options: the options of this run, JSON-able.
        paths: the inputs of this run.
        output: what the message calls the output.

    Raises:
        DataError: it was not; names the first difference.
    """
    advice = "remove it or choose another --out"
    made = record["options"]
    for key in sorted(made.keys() | options.keys()):
        if made.get(key) != options.get(key):
            raise DataError(
                f"{output} was made with {key} {made.get(key)!r}, this is {options.get(key)!r}: {advice}"
            )
    if len(record["inputs"]) != len(paths):
        raise DataError(
            f"{output} was made from {len(record['inputs'])} input files, not {len(paths)}: {advice}"
        )
    for entry, path in zip(record["inputs"], paths, strict=True):
        status = path.stat()
        if status.st_size == entry["bytes"] and status.st_mtime_ns == entry["mtime_ns"]:
            continue
        if status.st_size != entry["bytes"] or _file_hash(path) != entry["xxh3_128"]:
            raise DataError(f"{output} was made from another {path.name} than {path}: {advice}")


def _file_hash(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(chunk_digest(chunk) for chunk in plan_chunks([path])))
