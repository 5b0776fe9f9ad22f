"""Join corpora of the same tokenizer into one: their shards under new names, one manifest per split.

Shards are hard links by default, so merging costs neither space nor time; nothing ever writes into a shard.
Documents stay in the order of their corpora: the training order shuffles across shards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_tools.corpus_record import MERGE_RECORD, corpus_record
from data_tools.errors import DataError
from data_tools.progress import Progress
from data_tools.provenance import provenance_name
from data_tools.publish import publish_directory, write_file, write_json
from data_tools.record import read_record
from data_tools.shard_format import (
    SPLITS,
    FileInfo,
    Header,
    Manifest,
    ShardInfo,
    load_manifest,
    write_manifest,
)
from data_tools.shard_reader import open_corpus
from data_tools.tokenizer import corpus_tokenizer

CREATED_BY = "headwater data merge"
Transfer = Literal["auto", "copy", "link"]
"""How files come into the merged corpus; "auto" copies where no link is possible, as on another disk."""

_SAME = ("tokenizer_sha256", "vocab_size", "eod_id", "sentences")


def merge_corpora(
    inputs: Sequence[Path], out: Path, name: str, transfer: Transfer = "auto"
) -> tuple[dict[str, Any], bool]:
    """Make the corpus `out` of others, which stay as they are; or find it complete already.

    Args:
        inputs: corpus directories, in the order of their documents in the result.
        out: the directory to make.
        name: what the merged corpus is called.
        transfer: links or copies.

    Returns:
        The content of merge.json, and whether the work was done now.

    Raises:
        DataError: an input is no corpus, is there twice, or does not go with the others; `out` is in the way.
    """
    corpora = [open_corpus(path) for path in inputs]
    _check(corpora)
    parts = [_part(path, splits) for path, splits in zip(inputs, corpora, strict=True)]
    options = {"name": name, "created_by": CREATED_BY, "seed": corpora[0]["train"].seed}
    existing = read_record(out / MERGE_RECORD)
    if existing is not None:
        return _check_existing(existing, options, parts, out), False
    with publish_directory(out) as directory:
        tokenizer = corpus_tokenizer(inputs[0])
        write_file(directory / tokenizer.name, tokenizer.read_bytes())
        totals = {}
        for split in SPLITS:
            sources = [splits[split] for splits in corpora if split in splits]
            if sources:
                manifest = _merge_split(sources, directory / split, options, transfer)
                totals[split] = manifest.totals()
        record = {"options": options, "inputs": parts, **_summed(inputs), "splits": totals}
        write_json(directory / MERGE_RECORD, record)
    return record, True


def _check(corpora: Sequence[Mapping[str, Manifest]]) -> None:
    """Raise a DataError if the corpora cannot be one."""
    if len(corpora) < 2:
        raise DataError("a merge needs at least two corpora")
    first = corpora[0]["train"]
    seen: dict[str, Path] = {}
    for splits in corpora:
        for manifest in splits.values():
            for key in _SAME:
                if getattr(manifest, key) != getattr(first, key):
                    raise DataError(
                        f"{manifest.directory} has {key} {getattr(manifest, key)}, {first.directory} has "
                        f"{getattr(first, key)}: prepare both with the same tokenizer and options"
                    )
            for shard in manifest.shards:
                if shard.xxh3_128 in seen:
                    raise DataError(
                        f"{manifest.directory / shard.path} is also in {seen[shard.xxh3_128]}: the same "
                        "documents would be there twice; name each corpus once"
                    )
                seen[shard.xxh3_128] = manifest.directory / shard.path


def _part(path: Path, splits: Mapping[str, Manifest]) -> dict[str, Any]:
    """What the record says of an input."""
    return {
        "corpus": splits["train"].corpus,
        "url": str(path),
        "splits": {split: manifest.totals() for split, manifest in splits.items()},
    }


def _check_existing(
    existing: dict[str, Any], options: dict[str, Any], parts: list[dict[str, Any]], out: Path
) -> dict[str, Any]:
    """Return the record of a complete merge.

    Raises:
        DataError: it was made of something else, or is damaged.
    """
    same = existing["options"] == options and [part["splits"] for part in existing["inputs"]] == [
        part["splits"] for part in parts
    ]
    if not same:
        raise DataError(f"{out} was merged from other corpora or options: remove it or choose another --out")
    for split in existing["splits"]:
        load_manifest(out / split)
    return existing


def _merge_split(
    sources: Sequence[Manifest], target: Path, options: Mapping[str, Any], transfer: Transfer
) -> Manifest:
    """Bring the shards of a split together and write its manifest."""
    target.mkdir()
    shards: list[tuple[ShardInfo, npt.NDArray[np.void]]] = []
    total = sum(shard.bytes for source in sources for shard in source.shards)
    with Progress(f"merge {target.name}", total) as progress:
        for source in sources:
            for number, shard in enumerate(source.shards):
                name = f"{target.name}-{len(shards):05d}.tar"
                _transfer(source.directory / shard.path, target / name, transfer)
                beside = _transfer_provenance(source, shard, target / provenance_name(name), transfer)
                rows = source.blocks[source.blocks["shard"] == number]
                rows["shard"] = len(shards)
                shards.append((replace(shard, path=name, provenance=beside), rows))
                progress.add(shard.bytes, shard.documents)
    write_manifest(target, _header(sources[0], options, target.name), shards)
    return load_manifest(target)


def _transfer_provenance(
    source: Manifest, shard: ShardInfo, target: Path, transfer: Transfer
) -> FileInfo | None:
    if shard.provenance is None:
        return None
    path = source.directory / shard.provenance.path
    if not path.exists():
        raise DataError(f"no provenance {path}: restore it, or run `headwater data verify --repair-manifest`")
    _transfer(path, target, transfer)
    return replace(shard.provenance, path=target.name)


def _transfer(source: Path, target: Path, transfer: Transfer) -> None:
    """Link or copy a file.

    Raises:
        DataError: a link is asked for and not possible.
    """
    if transfer != "copy":
        try:
            os.link(source, target)
            return
        except OSError as error:
            if transfer == "link":
                raise DataError(
                    f"{source} cannot be linked to {target.parent} ({error.strerror}): put --out on the same "
                    "file system, or use --copy"
                ) from error
    shutil.copyfile(source, target)


def _header(first: Manifest, options: Mapping[str, Any], split: str) -> Header:
    return Header(
        corpus=options["name"],
        split=split,
        created_by=options["created_by"],
        seed=options["seed"],
        **{key: getattr(first, key) for key in _SAME},
    )


def _summed(inputs: Sequence[Path]) -> dict[str, Any]:
    """What reading, cleaning and deduplication met in all inputs; None where one does not say."""
    from data_tools.clean import Funnel

    records = [corpus_record(path) for path in inputs]
    summed: dict[str, Any] = {"funnel": None}
    for key in ("records", "duplicates"):
        counts = [record[key] for record in records if record.get(key)]
        all_say = len(counts) == len(records)
        summed[key] = {name: sum(one[name] for one in counts) for name in counts[0]} if all_say else None
    funnels = [Funnel.from_json(record["funnel"]) for record in records if record.get("funnel")]
    if len(funnels) == len(records):
        whole = Funnel()
        for funnel in funnels:
            whole.merge(funnel)
        summed["funnel"] = whole.to_json()
    return summed
