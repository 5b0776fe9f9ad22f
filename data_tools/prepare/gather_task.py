"""Stage 2, `gather`: add up what the reading tasks met, and refuse a corpus that is mostly bad or empty."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson

from data_tools.documents import BadRecord, ReadCounts
from data_tools.errors import DataError
from data_tools.prepare.plan import GATHER, READ
from data_tools.prepare.work import BAD, Work
from data_tools.reading import Chunk, Intake
from data_tools.record import input_entries

QUARANTINE_NAME = "quarantine.jsonl"


def gather(work: Work, max_bad_fraction: float) -> None:
    """Write the totals, the merged funnel and the quarantine.

    Raises:
        DataError: too many bad records, or no document left.
    """
    plan = work.plan()
    intake = Intake()
    funnels: list[dict[str, Any]] = []
    digests: list[tuple[int, bytes]] = []
    text_bytes = 0
    target = work.corpus / QUARANTINE_NAME
    with work.writing(target) as (path,), path.open("wb") as quarantine:
        for number in range(len(plan.read_tasks)):
            record = work.finished(READ, number)
            chunks = plan.chunks(number)
            with work.output(READ, number, BAD).open("rb") as bad:
                for chunk, entry in zip(chunks, record["chunks"], strict=True):
                    _add_chunk(intake, chunk, entry)
                    for _ in range(entry["counts"]["bad"]):
                        numbered = intake.number(BadRecord(**orjson.loads(bad.readline())))
                        quarantine.write(orjson.dumps(asdict(numbered)) + b"\n")
                    digests.append((chunk.file_index, bytes.fromhex(entry["digest"])))
            text_bytes += record["text_bytes"]
            if record["funnel"] is not None:
                funnels.append(record["funnel"])
    if not intake.counts.bad:
        target.unlink()
    intake.check(max_bad_fraction)
    if not intake.counts.documents:
        raise DataError("the corpus is empty: the inputs hold no document")
    if plan.options.clean is not None and not text_bytes:
        raise DataError("the cleaning dropped every document: look at its rules, or run without --clean")
    work.finish(
        GATHER,
        0,
        {
            "counts": asdict(intake.counts),
            "text_bytes": text_bytes,
            "funnel": _merged(funnels) if funnels else None,
            "inputs": input_entries(plan.inputs, digests),
        },
    )


def add_task(intake: Intake, chunks: list[Chunk], record: dict[str, Any]) -> None:
    """Add a reading task's record to `intake`."""
    for chunk, entry in zip(chunks, record["chunks"], strict=True):
        _add_chunk(intake, chunk, entry)


def _add_chunk(intake: Intake, chunk: Chunk, entry: dict[str, Any]) -> None:
    first = entry["first_bad"]
    intake.add(chunk, ReadCounts(**entry["counts"]), BadRecord(**first) if first is not None else None)


def _merged(funnels: list[dict[str, Any]]) -> dict[str, Any]:
    from data_tools.clean import Funnel

    whole = Funnel()
    for funnel in funnels:
        whole.merge(Funnel.from_json(funnel))
    return whole.to_json()
