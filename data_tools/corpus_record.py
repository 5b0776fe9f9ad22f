"""Which command made a corpus, and with which manifests: prepare.json, merge.json and repair.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.prepare import RECORD_NAME
from data_tools.record import read_record

PREPARE_RECORD = RECORD_NAME
MERGE_RECORD = "merge.json"
REPAIR_RECORD = "repair.json"
"""Beside or instead of the others after a repair that could not restore the very same manifests."""


def corpus_record(corpus: Path) -> dict[str, Any]:
    """The record of a corpus; its "splits" are those of the last repair, if there was one.

    Raises:
        DataError: the directory is no corpus, or its record is damaged.
    """
    made = read_record(corpus / PREPARE_RECORD) or read_record(corpus / MERGE_RECORD)
    repaired = read_record(corpus / REPAIR_RECORD)
    if made is None and repaired is None:
        raise DataError(
            f"{corpus} is not a prepared corpus: it has no {PREPARE_RECORD}; if it is one that lost it, "
            "`headwater data verify --repair-manifest` makes another from the shards"
        )
    record = made or {"options": {}, "inputs": []}
    return record if repaired is None else {**record, "splits": repaired["splits"], "repaired": True}
