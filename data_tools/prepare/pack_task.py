"""Stage 5, `pack`: the documents of a range of order keys -> one shard with its provenance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.prepare.drops import Drops
from data_tools.prepare.encoding import Encoded, encode_texts, take_given
from data_tools.prepare.plan import CLUSTER, DEDUP, PACK, READ, Plan
from data_tools.prepare.spill import SpillRecord, Spills
from data_tools.prepare.work import DROPS, INDEX, PROVENANCE, ROWS, SHARD, SPILL, Work
from data_tools.provenance import Origin, ProvenanceWriter
from data_tools.shard_format import SPLITS, Header, ShardWriter
from data_tools.tokenizer import Tokenizer, load_tokenizer

CREATED_BY = "headwater data prepare"
_BATCH_BYTES = 1 << 20
"""Text that is tokenised at once; has no influence on the result."""


@dataclass(slots=True)
class Counts:
    """Documents of a shard, and bytes of their text."""

    documents: int = 0
    text_bytes: int = 0
    duplicates: int = 0
    duplicate_bytes: int = 0


def shard_split(plan: Plan, number: int) -> str:
    """Split that a packing task writes for."""
    return SPLITS[0] if number < plan.sizes.train_shards else SPLITS[1]


def shard_header(plan: Plan, tokenizer: Tokenizer, split: str) -> Header:
    """What the shards of a split have in common."""
    if tokenizer.eod_id is None:
        raise DataError(f"{tokenizer.path} has no id for the end of a document, which shards need")
    return Header(
        corpus=plan.options.name,
        split=split,
        created_by=CREATED_BY,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        sentences=plan.options.sentences,
        seed=plan.options.seed,
    )


def pack(work: Work, number: int) -> None:
    """Run one packing task; an empty range leaves a record and no shard.

    Raises:
        DataError: tokens that come from the input are outside the vocabulary.
    """
    plan = work.plan()
    tokenizer = tokenizer_of(work, plan)
    counts = Counts()
    batches = _batches(_documents(work, plan, number, counts))
    first = next(batches, None)
    entry = None
    if first is not None:
        targets = [work.output(PACK, number, suffix) for suffix in (SHARD, PROVENANCE, ROWS)]
        with work.writing(*targets) as (shard, provenance, rows):
            writer = _ShardOfDocuments(plan, tokenizer, shard_split(plan, number), shard, provenance)
            with writer.shard, writer.provenance:
                writer.add(first)
                for batch in batches:
                    writer.add(batch)
                writer.flush()
            with rows.open("wb") as file:
                np.save(file, writer.shard.rows)
            entry = {**asdict(writer.shard.info), "provenance": asdict(writer.provenance.info)}
    work.finish(PACK, number, {"shard": entry, **asdict(counts)})


def tokenizer_of(work: Work, plan: Plan) -> Tokenizer:
    """The corpus's tokenizer, loaded once in a process.

    Raises:
        DataError: the file changed since the plan was made.
    """
    return _load(work.corpus / plan.tokenizer_name, plan.tokenizer_sha256)


@lru_cache(maxsize=1)
def _load(path: Path, sha256: str) -> Tokenizer:
    tokenizer = load_tokenizer(path)
    if tokenizer.sha256 != sha256:
        raise DataError(f"{path} is not the tokenizer of the plan: remove {path.parent.parent} and run again")
    return tokenizer


def _documents(work: Work, plan: Plan, number: int, counts: Counts) -> Iterator[SpillRecord]:
    """The documents of a shard in their final order, without duplicates."""
    sizes = plan.sizes
    files = range(len(plan.read_tasks))
    first = number * sizes.buckets_per_shard
    spills = Spills(
        [(work.output(READ, i, SPILL), work.output(READ, i, INDEX)) for i in files],
        range(first, first + sizes.buckets_per_shard),
        sizes.buckets,
    )
    drops = Drops([work.output(stage, i, DROPS) for stage, i in dropping_tasks(plan)])
    train = sizes.train_shards
    place, shards = (number, train) if number < train else (number - train, sizes.validation_shards)
    for part in range(sizes.buckets_per_shard):
        dropped = drops.between(place * sizes.buckets_per_shard + part, shards * sizes.buckets_per_shard)
        for record in spills.bucket(first + part):
            if record.key in dropped:
                counts.duplicates += 1
                counts.duplicate_bytes += len(record.payload)
                continue
            counts.documents += 1
            counts.text_bytes += len(record.payload)
            yield record


def dropping_tasks(plan: Plan) -> list[tuple[str, int]]:
    """(stage, number) of the tasks that leave a file of dropped keys."""
    dedup = plan.dedup()
    exact = plan.sizes.partitions if dedup is not None and dedup.exact else 0
    near = [(CLUSTER, 0)] if dedup is not None and dedup.near is not None else []
    return [(DEDUP, number) for number in range(exact)] + near


def _batches(records: Iterator[SpillRecord]) -> Iterator[list[SpillRecord]]:
    batch: list[SpillRecord] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.payload)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _ShardOfDocuments:
    """Tokenises batches of documents into the blocks of a shard."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer, split: str, shard: Path, provenance: Path) -> None:
        header = shard_header(plan, tokenizer, split)
        self.shard = ShardWriter(shard, header, 0)
        self.provenance = ProvenanceWriter(provenance, provenance.name)
        self._plan, self._tokenizer = plan, tokenizer
        self._files = [file.name for file in plan.inputs]
        self._eod_id, self._dtype = header.eod_id, header.token_dtype
        self._block_tokens = -(-plan.options.block_bytes // self._dtype.itemsize)
        self._begin_block()

    def _begin_block(self) -> None:
        self._parts: list[Encoded] = []
        self._tokens = 0

    def add(self, batch: list[SpillRecord]) -> None:
        """Append documents; a block ends with the document that fills it."""
        documents = self._encode(batch)
        self._note_origins(batch, documents.lengths.tolist())
        ends = np.cumsum(documents.lengths)
        cuts: list[int] = []
        room = self._block_tokens - self._tokens
        while (full := int(np.searchsorted(ends, room)) + 1) <= len(batch):
            cuts.append(full)
            room = int(ends[full - 1]) + self._block_tokens
        *full_blocks, rest = documents.split(cuts)
        for block in full_blocks:
            self._parts.append(block)
            self.flush()
        self._parts.append(rest)
        self._tokens += len(rest.tokens)

    def _note_origins(self, batch: list[SpillRecord], lengths: list[int]) -> None:
        for record, tokens in zip(batch, lengths, strict=True):
            self.provenance.add(
                Origin(
                    file=self._files[record.file_index],
                    position=record.position,
                    id=record.id.decode(),
                    source=record.source.decode(),
                    language=record.language.decode(),
                    tokens=tokens,
                )
            )

    def flush(self) -> None:
        """Write the block that was begun."""
        if any(len(part.lengths) for part in self._parts):
            block = Encoded.joined(self._parts)
            sentences = (block.sentence_counts, block.sentence_lengths)
            self.shard.write_block(
                block.tokens, block.lengths, sentences if self._plan.options.sentences else None
            )
            self._begin_block()

    def _encode(self, batch: list[SpillRecord]) -> Encoded:
        if self._plan.tokens:
            return take_given([self._given(record) for record in batch], self._eod_id, self._dtype)
        texts = [record.payload for record in batch]
        return encode_texts(self._tokenizer, texts, self._plan.options.sentences, self._dtype)

    def _given(self, record: SpillRecord) -> npt.NDArray[np.uint32]:
        """The tokens of a document that came as such; an eod at its end is allowed, and left out."""
        tokens = np.frombuffer(record.payload, dtype="<u4")
        eod = self._eod_id
        body = tokens[:-1] if len(tokens) > 1 and tokens[-1] == eod else tokens
        place = f"{self._plan.inputs[record.file_index].url}, document at {record.position}"
        if np.any(body == eod):
            raise DataError(f"{place}: holds the end-of-document id {eod} before its end; split it there")
        if reason := self._tokenizer.why_foreign(body):
            raise DataError(f"{place}: {reason} ({self._tokenizer.path.name})")
        return body
