"""Several corpora of one tokenizer into one, shard by shard: no token is read or written again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.corpus_record import MERGE_RECORD, corpus_record, split_totals
from data_tools.errors import DataError
from data_tools.provenance import provenance_name
from data_tools.publish import publish_directory, write_json
from data_tools.shard_format import SPLITS, Manifest, ShardInfo, load_manifest, write_manifest
from data_tools.shard_reader import open_corpus
from data_tools.tokenizer import corpus_tokenizer

CREATED_BY = "headwater data merge"
_SAME = ("tokenizer_sha256", "vocab_size", "eod_id", "sentences")


def merge_corpora(corpora: Sequence[Path], out: Path, name: str, copy: bool) -> dict[str, Any]:
    """Make the corpus `out` of the shards of others, in their order.

    Args:
        corpora: two or more corpora.
        out: the directory to make.
        name: what the corpus is called.
        copy: copy the shards; otherwise they are hard links, which take no room.

    Returns:
        The content of merge.json.

    Raises:
        DataError: the corpora do not fit together, one is named twice or not whole, or `out` exists.
    """
    if len({path.resolve() for path in corpora}) < max(len(corpora), 2):
        raise DataError("name two or more corpora, each once")
    opened = [open_corpus(path) for path in corpora]
    _check_same(corpora, [splits["train"] for splits in opened])
    records = [corpus_record(path) for path in corpora]
    with publish_directory(out) as directory:
        tokenizer = corpus_tokenizer(corpora[0])
        shutil.copyfile(tokenizer, directory / tokenizer.name)
        totals = {}
        for split in SPLITS:
            parts = [splits[split] for splits in opened if split in splits]
            if parts:
                totals[split] = split_totals(_merge_split(parts, directory / split, name, copy))
        inputs = [
            {"url": str(path.resolve()), "splits": record["splits"]}
            for path, record in zip(corpora, records, strict=True)
        ]
        record = {"options": {"name": name}, "inputs": inputs, "splits": totals}
        write_json(directory / MERGE_RECORD, record)
    return record


def _check_same(corpora: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    for path, manifest in zip(corpora, manifests, strict=True):
        for field in _SAME:
            ours, first = getattr(manifest, field), getattr(manifests[0], field)
            if ours != first:
                raise DataError(
                    f"{path} cannot be merged with {corpora[0]}: {field} is {ours!r}, not {first!r}; "
                    "prepare one of them again"
                )


def _merge_split(parts: Sequence[Manifest], directory: Path, name: str, copy: bool) -> Manifest:
    directory.mkdir()
    shards: list[tuple[ShardInfo, Any]] = []
    for part in parts:
        for index, shard in enumerate(part.shards):
            new = f"{part.split}-{len(shards):05d}.tar"
            _place(part.directory / shard.path, directory / new, copy)
            provenance = shard.provenance
            if provenance is not None:
                _place(part.directory / provenance.path, directory / provenance_name(new), copy)
                provenance = replace(provenance, path=provenance_name(new))
            rows = part.blocks[part.blocks["shard"] == index].copy()
            rows["shard"] = len(shards)
            shards.append((replace(shard, path=new, provenance=provenance), rows))
    write_manifest(directory, replace(parts[0].header(), corpus=name, created_by=CREATED_BY), shards)
    return load_manifest(directory)


def _place(source: Path, target: Path, copy: bool) -> None:
    if copy:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        raise DataError(f"cannot link {source} to {target} ({error.strerror}): use --copy") from error
