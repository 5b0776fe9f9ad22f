"""Stage 1, `read`: part of the inputs -> cleaned documents, grouped by bucket, and their signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import orjson

from data_tools.documents import BadRecord, Document, ReadCounts
from data_tools.errors import DataError
from data_tools.prepare.plan import READ, Plan
from data_tools.prepare.spill import Buckets, SpillRecord, SpillWriter, order_key
from data_tools.prepare.work import BAD, INDEX, SPILL, Work, signature_path
from data_tools.reading import Chunk, check_unchanged, chunk_digest, public_name, read_chunk

if TYPE_CHECKING:
    from data_tools.clean import Cleaner, Funnel
    from data_tools.dedup import Signatures

_SIGNATURES_HELD = 1 << 14
"""Documents whose signatures are kept in memory: 9 MB with near duplicates, 27 while they are written."""

EARLY_CHECK_RECORDS = 10_000
"""A wrong --text-key must not cost hours: from so many records on, bad ones may end the reading."""


def read(work: Work, number: int, max_bad_fraction: float) -> None:
    """Run one reading task.

    Raises:
        DataError: an input cannot be read, is damaged, holds no document, or changed since the plan was made.
    """
    plan = work.plan()
    chunks = plan.chunks(number)
    targets = [work.output(READ, number, suffix) for suffix in (SPILL, INDEX, BAD)]
    # The index has a hash of all that is in the spill file, which need not wait for the disk.
    with work.writing(targets[0], durable=False) as (spill,), work.writing(*targets[1:]) as (index, bad):
        intake = _Intake.begin(work, number, spill, index)
        with intake.spill, bad.open("wb") as quarantine:
            entries = [_read_chunk(chunk, plan, intake, quarantine, max_bad_fraction) for chunk in chunks]
        intake.flush_signatures()
    for file in {chunk.file.url: chunk.file for chunk in chunks}.values():
        check_unchanged(file)
    work.finish(
        READ,
        number,
        {
            "chunks": entries,
            "text_bytes": intake.text_bytes,
            "funnel": intake.funnel.to_json() if intake.funnel is not None else None,
            "signatures": intake.written_signatures,
        },
    )


@dataclass(slots=True)
class _Intake:
    """What the chunks of a task are collected in."""

    work: Work
    number: int
    buckets: Buckets
    spill: SpillWriter
    seed: int
    cleaner: Cleaner | None = None
    funnel: Funnel | None = None
    signatures: Signatures | None = None
    text_bytes: int = 0
    unwritten_signatures: int = 0
    written_signatures: list[dict[str, Sequence[int]]] = field(default_factory=list)

    @classmethod
    def begin(cls, work: Work, number: int, spill: Path, index: Path) -> _Intake:
        plan = work.plan()
        intake = cls(
            work=work,
            number=number,
            buckets=Buckets(plan.sizes, plan.options.validation_fraction),
            spill=SpillWriter(spill, index, plan.sizes.buckets, plan.sizes.segment_bytes),
            seed=plan.options.seed,
        )
        if (clean := plan.clean()) is not None:
            if clean.identity() != plan.clean_identity:
                raise DataError(
                    "a file that the cleaning reads changed since this work began: restore it, or run again "
                    "with --restart"
                )
            from data_tools.clean import Cleaner

            intake.cleaner = Cleaner(clean)
            intake.funnel = intake.cleaner.funnel()
        if (dedup := plan.dedup()) is not None:
            from data_tools.dedup import Signatures

            intake.signatures = Signatures(dedup, plan.sizes.partitions)
        return intake

    def add(self, document: Document, chunk: Chunk) -> None:
        """Clean a document and pass it on, unless the cleaning drops it."""
        language = ""
        text = document.text
        if document.tokens is not None:
            payload = document.tokens.astype("<u4").tobytes()
        else:
            if self.cleaner is not None and self.funnel is not None:
                outcome = self.cleaner.clean(text)
                self.funnel.add(document, outcome)
                if outcome.text is None:
                    return
                text, language = outcome.text, outcome.language
            payload = text.encode()
        key = order_key(payload, chunk.file_index, document.position, self.seed)
        if self.signatures is not None and document.tokens is None:
            self.signatures.add(text, key, chunk.file_index, document.position)
            self.unwritten_signatures += 1
            if self.unwritten_signatures >= _SIGNATURES_HELD:
                self.flush_signatures()
        record = SpillRecord(
            key,
            chunk.file_index,
            document.position,
            document.id.encode(),
            document.source.encode(),
            language.encode(),
            payload,
        )
        self.text_bytes += len(payload)
        self.spill.add(self.buckets.of(payload, key), record)

    def flush_signatures(self) -> None:
        """Write the signatures that are held in memory to a file of their own."""
        if not self.unwritten_signatures or self.signatures is None:
            return
        target = signature_path(self.work, self.number, len(self.written_signatures))
        with self.work.writing(target) as (path,):
            offsets = self.signatures.flush(path)
        self.written_signatures.append({"exact": offsets.exact, "bands": offsets.bands})
        self.unwritten_signatures = 0


def _read_chunk(
    chunk: Chunk, plan: Plan, intake: _Intake, quarantine: BinaryIO, max_bad_fraction: float
) -> dict[str, object]:
    """Read one chunk; returns what its record says of it."""
    counts = ReadCounts()
    first: BadRecord | None = None
    group = chunk.file.group
    redacts = intake.cleaner is not None and intake.cleaner.redacts
    for item in read_chunk(chunk, plan.options.read, counts):
        if not isinstance(item, BadRecord):
            item.source = item.source or group
            intake.add(item, chunk)
            continue
        bad = replace(item, path=public_name(item.path), excerpt="" if redacts else item.excerpt)
        first = first or bad
        quarantine.write(orjson.dumps(asdict(bad)) + b"\n")
        if counts.bad == EARLY_CHECK_RECORDS and not counts.documents and max_bad_fraction < 1.0:
            raise DataError(
                f"{chunk.file.url}: not one document in {counts.records:,} records; the first: {first.reason}"
            )
    return {
        "counts": asdict(counts),
        "first_bad": asdict(first) if first is not None else None,
        "digest": chunk_digest(chunk).hex(),
    }
