"""Check a corpus byte by byte: hashes of every file, and the rules that its content must keep."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from data_tools.errors import DataError
from data_tools.prepare import RECORD_NAME
from data_tools.progress import Progress
from data_tools.record import read_record
from data_tools.shard_format import SPLITS, Manifest, load_manifest
from data_tools.shard_reader import Block, read_block
from data_tools.tokenizer import corpus_tokenizer, load_tokenizer

_READ_BYTES = 4 << 20


def verify_corpus(corpus: Path) -> list[str]:
    """Find everything that is wrong with a corpus.

    Returns:
        One line per problem, each naming its file and where possible its block; empty if all is well.

    Raises:
        DataError: the directory is no corpus.
    """
    record = read_record(corpus / RECORD_NAME)
    if record is None:
        raise DataError(f"{corpus} is not a prepared corpus: it has no {RECORD_NAME}")
    problems: list[str] = []
    recorded = record.get("splits", {})
    for split in SPLITS:
        if (split in recorded) != (corpus / split).exists():
            problems.append(f"{corpus / split}: {RECORD_NAME} and the directories disagree about this split")
    for split, totals in recorded.items():
        try:
            manifest = load_manifest(corpus / split)
        except DataError as error:
            problems.append(str(error))
            continue
        if manifest.hash != totals.get("manifest_xxh3"):
            problems.append(f"{manifest.directory}: manifest.json is not the one that prepare wrote")
        reserved, found = _reserved_ids(corpus, manifest)
        problems += found
        problems += _shard_problems(manifest, reserved)
    return problems


def _reserved_ids(corpus: Path, manifest: Manifest) -> tuple[Sequence[int], list[str]]:
    """The ids that never stand in a document, and what is wrong with the tokenizer that says so."""
    try:
        path = corpus_tokenizer(corpus)
        if hashlib.sha256(path.read_bytes()).hexdigest() != manifest.tokenizer_sha256:
            return (), [f"{path} is not the tokenizer that made {manifest.directory}"]
        return load_tokenizer(path).reserved_ids, []
    except DataError as error:
        return (), [str(error)]


def _shard_problems(manifest: Manifest, reserved: Sequence[int]) -> Iterator[str]:
    total = sum(shard.bytes for shard in manifest.shards)
    with Progress(f"verify {manifest.split}", total) as progress:
        for index, shard in enumerate(manifest.shards):
            path = manifest.shard_path(index)
            digest = xxhash.xxh3_128()
            with path.open("rb") as file:
                while part := file.read(_READ_BYTES):
                    digest.update(part)
                    progress.add(len(part))
            if digest.hexdigest() != shard.xxh3_128:
                yield f"shard {path} is damaged (hash differs)"
            yield from _block_problems(manifest, index, reserved)


def _block_problems(manifest: Manifest, shard: int, reserved: Sequence[int]) -> Iterator[str]:
    """Problems of the blocks of one shard; a damaged one is named."""
    for number in np.flatnonzero(manifest.blocks["shard"] == shard):
        place = f"shard {manifest.shard_path(shard)}, block {int(manifest.blocks[number]['key']):06d}"
        try:
            block = read_block(manifest, int(number))
        except DataError as error:
            yield str(error)
            continue
        yield from (f"{place}: {problem}" for problem in broken_rules(block, manifest, reserved))


def broken_rules(block: Block, manifest: Manifest, reserved: Sequence[int]) -> Iterator[str]:
    """Rules of the format that a block breaks; `reserved` are ids that no document holds."""
    ends = np.cumsum(block.document_lengths, dtype=np.int64)
    if np.any(block.document_lengths < 2):
        yield "a document has no token before its eod"
    if np.any(block.tokens >= manifest.vocab_size):
        yield f"token id {int(block.tokens.max())} is outside the vocabulary of {manifest.vocab_size}"
    is_eod = np.zeros(len(block.tokens), dtype=np.bool_)
    is_eod[ends - 1] = True
    if not np.array_equal(block.tokens == manifest.eod_id, is_eod):
        yield "eod does not stand at the end of every document and only there"
    if np.isin(block.tokens[~is_eod], reserved).any():
        yield "a special id stands inside a document"
    if block.sentence_counts is None or block.sentence_lengths is None:
        return
    if np.any(block.sentence_counts == 0) or np.any(block.sentence_lengths == 0):
        yield "a document or a sentence is empty"
        return
    starts = np.cumsum(block.sentence_counts, dtype=np.int64) - block.sentence_counts
    sums = np.add.reduceat(block.sentence_lengths.astype(np.int64), starts)
    if not np.array_equal(sums, block.document_lengths.astype(np.int64) - 1):
        yield "sentence lengths do not sum to their document's length"
