"""Last stage, `finish`: number the shards, write manifests and the record, and give the corpus its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import DataError
from data_tools.prepare.pack_task import shard_header, shard_split, tokenizer_of
from data_tools.prepare.plan import DEDUP, FINISH, GATHER, PACK, Plan
from data_tools.prepare.work import PROVENANCE, ROWS, SHARD, TEMPORARY, Work, load_array
from data_tools.provenance import provenance_name
from data_tools.publish import fsync_directory, fsync_tree, write_json
from data_tools.shard_format import SPLITS, Header, Manifest, ShardInfo, load_manifest, write_manifest

RECORD_NAME = "prepare.json"
PackedShard = tuple[ShardInfo, np.ndarray[Any, np.dtype[np.void]]]


def finish(work: Work) -> None:
    """Complete the corpus in the work directory; `publish` gives it its name.

    Raises:
        DataError: every document fell into the validation split, or a task's output is gone.
    """
    plan = work.plan()
    tokenizer = tokenizer_of(work, plan)
    packed = [work.finished(PACK, number) for number in range(plan.sizes.shards)]
    splits = {}
    for split in SPLITS:
        numbers = [n for n, one in enumerate(packed) if one["shard"] and shard_split(plan, n) == split]
        if numbers:
            header = shard_header(plan, tokenizer, split)
            splits[split] = _finish_split(work, header, numbers, packed).totals()
    if "train" not in splits:
        raise DataError(
            "every document fell into the validation split: add text or lower --validation-fraction"
        )
    gathered = work.finished(GATHER, 0)
    record = {
        "options": plan.identity(),
        "inputs": gathered["inputs"],
        "records": gathered["counts"],
        "funnel": _published(gathered["funnel"]),
        "duplicates": _duplicates(work, plan, packed),
        "splits": splits,
    }
    write_json(work.corpus / RECORD_NAME, record)
    work.finish(FINISH, 0, {})


def _published(funnel: dict[str, Any] | None) -> dict[str, Any] | None:
    """The funnel without what must not leave the work directory."""
    if funnel is None:
        return None
    from data_tools.clean import publish_funnel

    return publish_funnel(funnel)


def publish(work: Work, out: Path) -> None:
    """Rename the finished corpus to `out`.

    Raises:
        OSError: `out` is in the way, or a disk is full.
    """
    if work.corpus.exists():
        for leftover in work.corpus.rglob(f".*{TEMPORARY}"):  # of a task that was killed and run again
            leftover.unlink()
        fsync_tree(work.corpus)
        work.corpus.rename(out)
        fsync_directory(out.parent)


def _finish_split(work: Work, header: Header, numbers: list[int], packed: list[dict[str, Any]]) -> Manifest:
    """Move the shards of a split into the corpus, numbered without gaps, and write the manifest."""
    directory = work.corpus / header.split
    directory.mkdir(exist_ok=True)
    shards: list[PackedShard] = []
    for index, number in enumerate(numbers):
        name = f"{header.split}-{index:05d}{SHARD}"
        _move(work.output(PACK, number, SHARD), directory / name)
        _move(work.output(PACK, number, PROVENANCE), directory / provenance_name(name))
        entry = packed[number]["shard"]
        provenance = {**entry["provenance"], "path": provenance_name(name)}
        info = ShardInfo.from_json({**entry, "path": name, "provenance": provenance})
        rows = load_array(work.output(PACK, number, ROWS))
        rows["shard"] = index
        shards.append((info, rows))
    write_manifest(directory, header, shards)
    return load_manifest(directory)


def _move(source: Path, target: Path) -> None:
    """Rename, unless a killed run did it already."""
    if source.exists():
        source.replace(target)
    elif not target.exists():
        raise DataError(f"{source} is gone: remove {source.with_suffix('.json')} and run again")


def _duplicates(work: Work, plan: Plan, packed: list[dict[str, Any]]) -> dict[str, int] | None:
    """How many documents were dropped as duplicates, and of which kind; None where nobody looked."""
    dedup = plan.dedup()
    if dedup is None:
        return None
    tasks = dict(plan.stages())
    exact = sum(work.finished(DEDUP, n).get("exact", 0) for n in range(tasks[DEDUP]))
    dropped = sum(one["duplicates"] for one in packed)
    return {
        "dropped": dropped,
        "exact": exact,
        "near_only": dropped - exact,
        "dropped_bytes": sum(one["duplicate_bytes"] for one in packed),
    }
