"""Make manifest.json and blocks.npy of a corpus again, from the shards themselves.

What the shards say of themselves (`__meta__`: tokenizer, vocabulary, split) must agree. Name and seed of the
corpus stand in no shard: they come from manifest.json if it is intact, else from prepare.json or merge.json.
With these the new files are the very same as the lost ones, and the record holds the hash that proves it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.corpus_record import MERGE_RECORD, PREPARE_RECORD, REPAIR_RECORD
from data_tools.errors import DataError
from data_tools.prepare.pack_task import CREATED_BY
from data_tools.progress import Progress
from data_tools.provenance import provenance_name
from data_tools.publish import fsync_directory, write_json
from data_tools.record import read_record
from data_tools.repair_evidence import check_old_blocks, kept_manifest, known_hashes, manifest_hash
from data_tools.shard_format import (
    BLOCKS_NAME,
    MANIFEST_NAME,
    SPLITS,
    FileInfo,
    Header,
    ShardInfo,
    load_manifest,
    write_manifest,
)
from data_tools.shard_scan import ScannedShard, ShardScan
from data_tools.tokenizer import Tokenizer, corpus_tokenizer, load_tokenizer
from data_tools.verify_shard import Rules, broken_rules, file_hash

PackedShard = tuple[ShardInfo, npt.NDArray[np.void]]


def repair_manifests(corpus: Path) -> list[str]:
    """Rebuild manifest.json and blocks.npy of every split; the old ones are replaced.

    Returns:
        Lines that say what was done and what could not be recovered.

    Raises:
        DataError: a shard is missing or damaged, or the shards do not belong together; its split stays as is.
    """
    notes: list[str] = []
    record = _readable_record(corpus, notes)
    recorded: dict[str, Any] = (record or {}).get("splits", {})
    for split in recorded:
        if not (corpus / split).is_dir():
            raise DataError(f"{corpus / split} is gone: restore it, or prepare again")
    splits = [split for split in SPLITS if (corpus / split).is_dir()]
    if "train" not in splits:
        raise DataError(f"{corpus} is not a corpus: it has no train directory")
    tokenizer = load_tokenizer(corpus_tokenizer(corpus))
    totals = {}
    for split in splits:
        totals[split] = _rebuild(corpus / split, tokenizer, record, notes)
    if totals == recorded and (corpus / PREPARE_RECORD).exists() | (corpus / MERGE_RECORD).exists():
        (corpus / REPAIR_RECORD).unlink(missing_ok=True)
    else:
        write_json(corpus / REPAIR_RECORD, {"options": {}, "inputs": [], "splits": totals, "notes": notes})
    return notes


def _readable_record(corpus: Path, notes: list[str]) -> dict[str, Any] | None:
    """What prepare or merge recorded, or an earlier repair; a damaged record is put aside."""
    for name in (PREPARE_RECORD, MERGE_RECORD, REPAIR_RECORD):
        path = corpus / name
        try:
            record = read_record(path)
        except DataError:
            path.rename(path.with_name(f"{name}.damaged"))
            notes.append(f"{path} cannot be read and is put aside as {name}.damaged: what it says is lost")
            continue
        if record is not None:
            return record
    notes.append(f"{corpus}: options and inputs of this corpus are not known any more (no {PREPARE_RECORD})")
    return None


def _rebuild(
    directory: Path,
    tokenizer: Tokenizer,
    record: dict[str, Any] | None,
    notes: list[str],
) -> dict[str, Any]:
    """Replace the tables of one split; returns its totals."""
    recorded = (record or {}).get("splits", {}).get(directory.name, {})
    proofs = known_hashes(directory, record)
    scans = list(_scan_all(directory, tokenizer, recorded.get("shards", 1)))
    _check_agreement(directory, scans, tokenizer)
    kept = kept_manifest(directory, scans, proofs)
    shards = []
    for index, scan in enumerate(scans):
        scan.rows["shard"] = index
        if kept is None:
            beside = directory / provenance_name(scan.info.path)
            info = replace(scan.info, provenance=_provenance(beside, scan.info.documents, notes))
        else:
            info = ShardInfo.from_json(kept["shards"][index])
        shards.append((info, scan.rows))
    header, missing = _header(directory, scans[0], kept, record)
    before = {*proofs, manifest_hash(directory)}
    _replace_tables(directory, header, shards, proofs)
    manifest = load_manifest(directory)
    done = f"{directory}: {MANIFEST_NAME} and {BLOCKS_NAME} made again from {len(shards)} shard(s)"
    if manifest.hash in before:
        notes.append(f"{done}; they are the very same as before")
    else:
        notes += [f"{done}; nothing proves that they are as before", *missing]
        notes.append(f"{directory}: training runs that began on another {MANIFEST_NAME} will refuse this one")
    return manifest.totals()


def _scan_all(directory: Path, tokenizer: Tokenizer, expected: int) -> Iterator[ScannedShard]:
    """Read every shard of a split and check the rules of its content.

    Raises:
        DataError: one is missing or damaged.
    """
    paths = sorted(directory.glob(f"{directory.name}-*.tar"))
    if len(paths) < expected:
        raise DataError(f"{directory} has {len(paths)} shard(s), of at least {expected}: restore them")
    rules = Rules(tokenizer.vocab_size, tokenizer.eod_id, tokenizer.reserved_ids)
    with Progress(f"scan {directory.name}", sum(path.stat().st_size for path in paths)) as progress:
        for index, path in enumerate(paths):
            wanted = f"{directory.name}-{index:05d}.tar"
            if path.name != wanted:
                raise DataError(
                    f"{directory / wanted} is missing, but there is {path.name}: restore it first"
                )
            scan = ShardScan(path)
            for key, block in enumerate(scan.blocks()):
                for problem in broken_rules(block, rules):
                    raise DataError(f"shard {path}, block {key:06d}: {problem}; restore the shard first")
            progress.add(scan.result.info.bytes, scan.result.info.documents)
            yield scan.result


def _check_agreement(directory: Path, scans: list[ScannedShard], tokenizer: Tokenizer) -> None:
    expected = {
        "split": directory.name,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
    }
    for scan in scans:
        for key, value in expected.items():
            if scan.meta.get(key) != value:
                raise DataError(
                    f"shard {directory / scan.info.path} says {key} {scan.meta.get(key)!r}, its place and "
                    f"{tokenizer.path.name} say {value!r}: it belongs to another corpus"
                )
        if scan.sentences != scans[0].sentences:
            raise DataError(
                f"shards disagree: of {scan.info.path} and {scans[0].info.path} in {directory} only one has "
                "sentences: they belong to different corpora"
            )


def _provenance(path: Path, documents: int, notes: list[str]) -> FileInfo | None:
    """The entry of the file beside a shard; None if it is of no use."""
    try:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
        if rows == documents:
            return FileInfo(path=path.name, bytes=path.stat().st_size, xxh3_128=file_hash(path))
        problem = f"it has {rows} rows for {documents} documents"
    except (OSError, pa.ArrowException) as error:
        problem = str(error).splitlines()[0]
    notes.append(f"{path}: where the documents of its shard come from is lost ({problem})")
    return None


def _header(
    directory: Path, scan: ScannedShard, kept: dict[str, Any] | None, record: dict[str, Any] | None
) -> tuple[Header, list[str]]:
    """The header, and what in it is not known for sure."""
    if kept is not None:
        return Header(**{field.name: kept[field.name] for field in fields(Header)}), []
    options = (record or {}).get("options", {})
    known = {"corpus": options.get("name"), "seed": options.get("seed")}
    missing = []
    for key, default in (("corpus", directory.absolute().parent.name), ("seed", 0)):
        if known[key] is None:
            known[key] = default
            missing.append(f"{directory}: {key} could not be recovered; {default!r} stands there now")
    return Header(
        split=directory.name,
        created_by=options.get("created_by", CREATED_BY),
        tokenizer_sha256=scan.meta["tokenizer_sha256"],
        vocab_size=scan.meta["vocab_size"],
        eod_id=scan.meta["eod_id"],
        sentences=scan.sentences,
        **known,
    ), missing


def _replace_tables(directory: Path, header: Header, shards: list[PackedShard], proofs: set[str]) -> None:
    """Write the tables beside the split, and put them in place when they are whole.

    Raises:
        DataError: they cannot be right: the record or blocks.npy knows others.
    """
    new = directory.parent / f".{directory.name}.tables"
    new.mkdir(exist_ok=True)
    try:
        write_manifest(new, header, shards)
        if manifest_hash(new) not in proofs:
            check_old_blocks(directory, np.load(new / BLOCKS_NAME))
            if proofs and all(info.provenance for info, _ in shards):
                raise DataError(
                    f"{directory}: by its record's hash, a shard or its provenance is not what was written: "
                    f"restore them; to go on with what is there, remove {PREPARE_RECORD}, {MERGE_RECORD} and "
                    f"{REPAIR_RECORD}"
                )
        for name in (BLOCKS_NAME, MANIFEST_NAME):
            (new / name).replace(directory / name)
    finally:
        shutil.rmtree(new)
    fsync_directory(directory)
