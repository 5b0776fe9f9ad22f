"""Turn JSON-lines documents into a corpus: token shards, manifests and a copy of the tokenizer.

    documents -> split and bucket by hash (`scatter`) -> sort, tokenise, write shards (`pack`)

The corpus appears whole or not at all, and its bytes depend on inputs, tokenizer and options only.
`prepare.json` in it records these; with the same ones, a rerun is done at once.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.record import add_hashes, check_record, describe_inputs, read_record
from data_tools.jsonl import Intake, find_inputs, plan_chunks
from data_tools.pack import PackedShard, PackTask, pack
from data_tools.progress import Progress
from data_tools.publish import publish_directory, write_file, write_json
from data_tools.scatter import Buckets, ScatterTask, Spill, scatter
from data_tools.shard_format import SPLITS, TOKENIZER_NAME, Header, Manifest, load_manifest, write_manifest
from data_tools.tokenizer import Tokenizer
from data_tools.workers import map_in_order

RECORD_NAME = "prepare.json"
QUARANTINE_NAME = "quarantine.jsonl"
CREATED_BY = "headwater data prepare"

_SHARDS_WANTED = 16  # enough that workers share a small corpus
_SMALLEST_SHARD, _LARGEST_SHARD = 16 << 20, 512 << 20  # bytes of text; a bucket must fit a worker's memory
_EARLY_CHECK_LINES = 10_000  # a wrong --json-key must not cost hours


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What determines a corpus, besides its inputs and its tokenizer."""

    name: str
    """Name of the corpus."""
    json_key: str = "text"
    """Key of the text in each JSON line."""
    sentences: bool = False
    """Record sentence lengths, which BERT needs; GPT reads such a corpus as well."""
    validation_fraction: float = 0.01
    """Share of the documents that go to the validation split, by the hash of their text."""
    seed: int = 1234
    """Shuffles the documents."""
    block_bytes: int = 1 << 20
    """Bytes of tokens in a block, about: a block ends with the document that reaches it."""
    shard_bytes: int | None = None
    """Bytes of input per shard, about; a 16th of the input by default, within 16 and 512 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Outcome of `prepare`: the content of prepare.json, and whether the work was done now."""

    record: dict[str, Any]
    fresh: bool


def prepare(
    inputs: Sequence[Path],
    tokenizer_path: Path,
    out: Path,
    options: PrepareOptions,
    workers: int = 1,
    max_bad_fraction: float = 0.01,
) -> Prepared:
    """Make the corpus directory `out`, or find it complete already.

    Raises:
        DataError: bad options or inputs, too many bad lines, no document, or an `out` that was made
            from something else. Nothing is left behind then.
    """
    _check_options(options, workers)
    tokenizer = Tokenizer.load(tokenizer_path)
    files = find_inputs(inputs)
    total = sum(path.stat().st_size for path in files)
    options = replace(options, shard_bytes=options.shard_bytes or _default_shard_bytes(total))
    recorded_options = asdict(options) | {"tokenizer_sha256": tokenizer.sha256}
    existing = read_record(out / RECORD_NAME)
    if existing is not None:
        check_record(existing, recorded_options, files, out)
        for split in existing["splits"]:
            load_manifest(out / split)
        return Prepared(record=existing, fresh=False)
    with publish_directory(out) as directory:
        described = describe_inputs(files)
        buckets = plan_buckets(total, options)
        tasks = _scatter_tasks(files, directory / "spill", options, buckets)
        intake, spills = _scatter(tasks, workers, max_bad_fraction)
        add_hashes(described, [task.chunk for task in tasks], [spill.digest for spill in spills])
        _write_quarantine(directory / QUARANTINE_NAME, intake)
        write_file(directory / TOKENIZER_NAME, tokenizer.path.read_bytes())
        splits = _pack_splits(spills, buckets, directory, options, workers)
        shutil.rmtree(directory / "spill")
        record = {
            "options": recorded_options,
            "inputs": described,
            "lines": asdict(intake.counts),
            "splits": splits,
        }
        write_json(directory / RECORD_NAME, record)
    return Prepared(record=record, fresh=True)


def plan_buckets(total_bytes: int, options: PrepareOptions) -> Buckets:
    """Numbers of buckets, and so at most of shards, for inputs of `total_bytes`."""
    fraction = options.validation_fraction
    shard_bytes = options.shard_bytes or _default_shard_bytes(total_bytes)
    return Buckets(
        train=max(1, math.ceil(total_bytes * (1 - fraction) / shard_bytes)),
        validation=max(1, math.ceil(total_bytes * fraction / shard_bytes)),
        validation_fraction=fraction,
    )


def _default_shard_bytes(total_bytes: int) -> int:
    return min(max(total_bytes // _SHARDS_WANTED, _SMALLEST_SHARD), _LARGEST_SHARD)


def _check_options(options: PrepareOptions, workers: int) -> None:
    if not 0.0 <= options.validation_fraction < 1.0:
        raise DataError(f"--validation-fraction must lie in [0, 1), not {options.validation_fraction:g}")
    if not 1 <= options.block_bytes <= 1 << 30:
        raise DataError(f"--block-bytes must lie in [1, {1 << 30}], not {options.block_bytes}")
    if options.shard_bytes is not None and options.shard_bytes < 1:
        raise DataError(f"--shard-bytes must be positive, not {options.shard_bytes}")
    if not 0 <= options.seed < 1 << 64:
        raise DataError(f"--seed must lie in [0, 2^64), not {options.seed}")
    if workers < 1:
        raise DataError(f"--workers must be positive, not {workers}")


def _scatter_tasks(
    files: Sequence[Path], spill: Path, options: PrepareOptions, buckets: Buckets
) -> list[ScatterTask]:
    spill.mkdir()
    return [
        ScatterTask(
            chunk=chunk,
            spill=spill / f"{number:06d}",
            json_key=options.json_key,
            seed=options.seed,
            buckets=buckets,
        )
        for number, chunk in enumerate(plan_chunks(files))
    ]


def _scatter(
    tasks: Sequence[ScatterTask], workers: int, max_bad_fraction: float
) -> tuple[Intake, list[Spill]]:
    """Scatter every chunk.

    Raises:
        DataError: too many bad lines, or no document.
    """
    intake, spills = Intake(), []
    total = sum(task.chunk.stop - task.chunk.start for task in tasks)
    with Progress("read", total) as progress:
        for task, spill in zip(tasks, map_in_order(scatter, tasks, workers), strict=True):
            spills.append(spill)
            intake.add(task.chunk, spill.counts, spill.bad_lines)
            if intake.counts.lines >= _EARLY_CHECK_LINES:
                intake.check(max_bad_fraction)
            progress.add(task.chunk.stop - task.chunk.start)
    intake.check(max_bad_fraction)
    if not intake.counts.documents:
        raise DataError("the corpus is empty: the inputs hold no document")
    return intake, spills


def _pack_splits(
    spills: Sequence[Spill], buckets: Buckets, directory: Path, options: PrepareOptions, workers: int
) -> dict[str, dict[str, Any]]:
    """Write every split that has documents; returns its totals and the hash of its manifest.

    Raises:
        DataError: every document fell into the validation split.
    """
    tokenizer = Tokenizer.load(directory / TOKENIZER_NAME)
    splits = {}
    for split, numbers in zip(SPLITS, buckets.by_split(), strict=True):
        header = Header(
            corpus=options.name,
            split=split,
            created_by=CREATED_BY,
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            sentences=options.sentences,
            seed=options.seed,
        )
        sources = _bucket_sources(spills, numbers)
        if not sources:
            continue
        path = directory / split
        path.mkdir()
        tasks = [
            PackTask(
                pieces=pieces,
                path=path / f"{split}-{index:05d}.tar",
                shard_index=index,
                header=header,
                tokenizer=tokenizer.path,
                block_bytes=options.block_bytes,
            )
            for index, pieces in enumerate(sources)
        ]
        write_manifest(path, header, _run_pack(tasks, workers))
        splits[split] = _totals(load_manifest(path))
    if "train" not in splits:
        raise DataError(
            "every document fell into the validation split: add text or lower --validation-fraction"
        )
    return splits


def _bucket_sources(spills: Sequence[Spill], numbers: range) -> list[tuple[tuple[Path, int, int], ...]]:
    """For each bucket that is not empty: where its documents lie in the spill files."""
    sources = []
    for bucket in numbers:
        pieces = ((spill.path, spill.offsets[bucket], spill.offsets[bucket + 1]) for spill in spills)
        if found := tuple(piece for piece in pieces if piece[1] < piece[2]):
            sources.append(found)
    return sources


def _run_pack(tasks: Sequence[PackTask], workers: int) -> list[PackedShard]:
    sizes = [sum(stop - start for _, start, stop in task.pieces) for task in tasks]
    shards = []
    with Progress(f"tokenise {tasks[0].header.split}", sum(sizes)) as progress:
        for size, packed in zip(sizes, map_in_order(pack, tasks, workers), strict=True):
            shards.append(packed)
            progress.add(size)
    return shards


def _totals(manifest: Manifest) -> dict[str, Any]:
    return {
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "sentences": manifest.sentence_count,
        "shards": len(manifest.shards),
        "blocks": len(manifest.blocks),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "manifest_xxh3": manifest.hash,
    }


def _write_quarantine(path: Path, intake: Intake) -> None:
    """One JSON line per bad line: file, line, offset, reason and how it begins."""
    if intake.bad_lines:
        lines = (json.dumps(asdict(bad), ensure_ascii=False) + "\n" for bad in intake.bad_lines)
        write_file(path, "".join(lines).encode())
