"""Check a corpus byte by byte: hashes of every file, and the rules that its content must keep."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from data_tools.corpus_record import corpus_record
from data_tools.errors import DataError
from data_tools.progress import Progress
from data_tools.shard_format import MANIFEST_NAME, SPLITS, Manifest, load_tables
from data_tools.tokenizer import corpus_tokenizer, load_tokenizer
from data_tools.verify_shard import ShardTask, shard_problems, shard_tasks
from data_tools.workers import WorkerPool


def verify_corpus(corpus: Path, workers: int = 1) -> list[str]:
    """Find everything that is wrong with a corpus.

    Args:
        corpus: the corpus directory.
        workers: processes; each checks one shard at a time and holds one block of it.

    Returns:
        One line per problem, each naming its file and where possible its block and bytes; empty if all is
        well.

    Raises:
        DataError: the directory is no corpus.
    """
    recorded = corpus_record(corpus).get("splits", {})
    problems: list[str] = []
    tasks: list[ShardTask] = []
    for split in SPLITS:
        if (split in recorded) != (corpus / split).exists():
            problems.append(
                f"{corpus / split}: the corpus' record and its directories disagree about this split"
            )
    for split, totals in recorded.items():
        try:
            manifest = load_tables(corpus / split)
        except DataError as error:
            problems.append(
                f"{error}; if only this is lost, `verify --repair-manifest` makes it from the shards"
            )
            continue
        if manifest.hash != totals.get("manifest_xxh3"):
            problems.append(f"{manifest.directory}: manifest.json is not the one that prepare wrote")
        reserved, found = _reserved_ids(corpus, manifest)
        problems += found + _strangers(manifest)
        tasks += shard_tasks(manifest, reserved)
    return list(dict.fromkeys(problems)) + _check_shards(tasks, workers)  # splits share their tokenizer


def _reserved_ids(corpus: Path, manifest: Manifest) -> tuple[Sequence[int], list[str]]:
    """The ids that never stand in a document, and what is wrong with the tokenizer that says so."""
    try:
        path = corpus_tokenizer(corpus)
        if hashlib.sha256(path.read_bytes()).hexdigest() != manifest.tokenizer_sha256:
            return (), [f"{path} is not the tokenizer that made {manifest.directory}"]
        return load_tokenizer(path).reserved_ids, []
    except DataError as error:
        return (), [str(error)]


def _strangers(manifest: Manifest) -> list[str]:
    """Shards in the directory that the manifest does not know."""
    known = {shard.path for shard in manifest.shards}
    found = sorted(path for path in manifest.directory.glob("*.tar") if path.name not in known)
    return [f"{path} is a shard that {MANIFEST_NAME} does not list" for path in found]


def _check_shards(tasks: Sequence[ShardTask], workers: int) -> list[str]:
    problems: list[str] = []
    total = sum(task.manifest.shards[0].bytes for task in tasks)
    with Progress("verify", total) as progress, WorkerPool(workers) as pool:
        for task, found in zip(tasks, pool.map(shard_problems, tasks), strict=True):
            problems += found
            progress.add(task.manifest.shards[0].bytes, task.manifest.shards[0].documents)
    return problems
