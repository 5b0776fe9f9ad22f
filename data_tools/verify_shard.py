"""Check one shard and the provenance beside it; name what is damaged, and where."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_tools.errors import DataError
from data_tools.shard_format import META_NAME, FileInfo, Manifest, padded
from data_tools.shard_layout import TAR_BLOCK
from data_tools.shard_reader import Block, read_block
from data_tools.shard_writer import member_header, meta_payload

_READ_BYTES = 4 << 20


class Rules(NamedTuple):
    """A vocabulary: its size, the id that ends documents, and the ids that stand in no document."""

    vocab_size: int
    eod_id: int | None
    reserved: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """A shard to check.

    Attributes:
        manifest: a split of this shard alone.
        rules: what its documents must keep.
    """

    manifest: Manifest
    rules: Rules


def shard_tasks(manifest: Manifest, reserved: Sequence[int]) -> Iterator[ShardTask]:
    """One task per shard of a split."""
    for index, shard in enumerate(manifest.shards):
        rows = manifest.blocks[manifest.blocks["shard"] == index]
        rows["shard"] = 0
        rules = Rules(manifest.vocab_size, manifest.eod_id, tuple(reserved))
        yield ShardTask(manifest=replace(manifest, shards=(shard,), blocks=rows), rules=rules)


def shard_problems(task: ShardTask) -> list[str]:
    """What is wrong with a shard; one line each."""
    manifest, path = task.manifest, task.manifest.shard_path(0)
    shard = manifest.shards[0]
    try:
        size = path.stat().st_size
        problems = _file_problems(path, shard, "shard")
        lengths: list[npt.NDArray[np.uint32]] = []
        problems += list(_block_problems(task, size, lengths))
        if problems and size:
            problems += _frame_problems(manifest, path)
    except OSError as error:
        return [f"no shard {path} ({error.strerror}): restore it or prepare again"]
    if shard.provenance is None:
        return problems
    beside = manifest.directory / shard.provenance.path
    return problems + _provenance_problems(beside, shard.provenance, lengths if not problems else None)


def broken_rules(block: Block, rules: Rules) -> Iterator[str]:
    """Rules of the format that a block breaks."""
    ends = np.cumsum(block.document_lengths, dtype=np.int64)
    if np.any(block.document_lengths < 2):
        yield "a document has no token before its eod"
    if np.any(block.tokens >= rules.vocab_size):
        yield f"token id {int(block.tokens.max())} is outside the vocabulary of {rules.vocab_size}"
    is_eod = np.zeros(len(block.tokens), dtype=np.bool_)
    is_eod[ends - 1] = True
    if not np.array_equal(block.tokens == rules.eod_id, is_eod):
        yield "eod does not stand at the end of every document and only there"
    if np.isin(block.tokens[~is_eod], rules.reserved).any():
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


def file_hash(path: Path) -> str:
    """xxh3_128 of a file, in hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _file_problems(path: Path, recorded: FileInfo, what: str) -> list[str]:
    size = path.stat().st_size
    if size != recorded.bytes:
        return [f"{what} {path} has {size} bytes, its manifest says {recorded.bytes}"]
    return [] if file_hash(path) == recorded.xxh3_128 else [f"{what} {path} is damaged (hash differs)"]


def _block_problems(task: ShardTask, size: int, lengths: list[npt.NDArray[np.uint32]]) -> Iterator[str]:
    """Problems of the blocks, each with its bytes; `lengths` receives those of the documents of good ones."""
    manifest = task.manifest
    for number in range(len(manifest.blocks)):
        place = f"shard {manifest.shard_path(0)}, block {int(manifest.blocks[number]['key']):06d}"
        layout = manifest.layout(number)
        last = layout.sent or layout.doc
        end = last.offset + last.length
        if end > size:
            left = len(manifest.blocks) - number
            yield f"{place} and those after it, {left} in all, lie beyond the end of the file at byte {size}"
            return
        try:
            block = read_block(manifest, number)
        except DataError as error:
            yield f"{error}, somewhere in bytes {layout.tok.offset} to {end}"
            continue
        lengths.append(block.document_lengths)
        yield from (f"{place}: {problem}" for problem in broken_rules(block, task.rules))


def _frame_problems(manifest: Manifest, path: Path) -> list[str]:
    """The first byte between the payloads, a header or padding, that is not what it must be."""
    with path.open("rb") as file:
        for offset, expected, what in _frame(manifest):
            file.seek(offset)
            found = file.read(len(expected))
            if found != expected:
                wrong = next(
                    (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found)
                )
                return [f"shard {path}, byte {offset + wrong}, in {what}: not what was written"]
    return []


def _frame(manifest: Manifest) -> Iterator[tuple[int, bytes, str]]:
    """(offset, content, name) of every piece of the tar outside of the blocks' payloads, in order."""
    meta = meta_payload(manifest)
    yield 0, member_header(META_NAME, len(meta)) + meta + bytes(padded(len(meta)) - len(meta)), META_NAME
    end = TAR_BLOCK + padded(len(meta))
    for number in range(len(manifest.blocks)):
        key = f"{int(manifest.blocks[number]['key']):06d}"
        for suffix, member in zip(("tok", "doc", "sent"), manifest.layout(number), strict=True):
            if member is None:
                continue
            name = f"{key}.{suffix}.bin"
            yield member.offset - TAR_BLOCK, member_header(name, member.length), f"the header of {name}"
            payload_end = member.offset + member.length
            end = member.offset + padded(member.length)
            yield payload_end, bytes(end - payload_end), f"the padding after {name}"
    total = -(-(end + 2 * TAR_BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    yield end, bytes(total - end), "the end of the tar"


def _provenance_problems(
    path: Path, recorded: FileInfo, lengths: list[npt.NDArray[np.uint32]] | None
) -> list[str]:
    """Problems of the file beside a shard; with `lengths`, also rows that are not about its documents."""
    try:
        problems = _file_problems(path, recorded, "provenance")
        if problems or lengths is None:
            return problems
        with pq.ParquetFile(path) as file:
            rows = [batch.column(0).to_numpy() for batch in file.iter_batches(columns=["tokens"])]
    except OSError as error:
        return [f"no provenance {path} ({error.strerror or error}): restore it or prepare again"]
    except (pa.ArrowException, KeyError) as error:
        return [f"provenance {path} cannot be read: {error}"]
    none = np.empty(0, dtype=np.uint32)
    if not np.array_equal(np.concatenate([none, *rows]), np.concatenate([none, *lengths])):
        return [f"provenance {path} is of other documents than its shard"]
    return []
