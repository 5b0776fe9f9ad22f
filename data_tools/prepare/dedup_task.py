"""Stage 3, `dedup`: signatures of one partition -> exact duplicates to drop, pairs of near ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_tools.dedup import (
    Offsets,
    exact_duplicates,
    near_edges,
    read_band_records,
    read_exact_records,
)
from data_tools.prepare.drops import write_drops
from data_tools.prepare.plan import DEDUP, READ, Plan
from data_tools.prepare.work import DROPS, EDGES, Work, signature_path


def dedup(work: Work, partition: int) -> None:
    """Find the exact duplicates of one partition of the hashes, and what its near ones share."""
    config = work.plan().dedup()
    assert config is not None  # the stage has no tasks otherwise
    files = list(_signature_files(work, work.plan()))
    record = {"exact": 0, "edges": 0}
    if config.exact:
        keys = exact_duplicates(read_exact_records(files, partition))
        with work.writing(work.output(DEDUP, partition, DROPS)) as (path,):
            write_drops(path, keys)
        record["exact"] = len(keys)
    if config.near is not None:
        edges = near_edges(read_band_records(files, partition))
        with work.writing(work.output(DEDUP, partition, EDGES)) as (path,):
            _save(path, edges)
        record["edges"] = len(edges)
    work.finish(DEDUP, partition, record)


def _signature_files(work: Work, plan: Plan) -> Iterator[Offsets]:
    for task in range(len(plan.read_tasks)):
        for part, offsets in enumerate(work.finished(READ, task)["signatures"]):
            path = signature_path(work, task, part)
            yield Offsets(path=path, exact=tuple(offsets["exact"]), bands=tuple(offsets["bands"]))


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)
