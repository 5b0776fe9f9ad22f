"""What happens to samples whose block is damaged, where `data.on_bad_block` is `skip`.

Such a sample stays in its place in its batch, but has no part in the loss. So no rank has to tell another:
the samples of every batch are those of an undamaged corpus, and the loss is normalised by what is left.

Each data-parallel rank writes what it skipped into a file of its own, one JSON object a line.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.objectives import MicroBatch

LEDGER_DIRECTORY = "skipped"
IGNORED_LABEL = -100
"""What torch's cross_entropy takes for no target at all."""


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """One line of a ledger.

    Attributes:
        sample: global number, counted from the start of training.
        corpus: its name.
        shard, block, byte: what could not be read; the block's number in its shard.
        problem: why.
    """

    sample: int
    corpus: str
    shard: str
    block: int
    byte: int
    problem: str


class SkipLedger:
    """The skipped samples of one rank; they count when their step is handed out, not when they are read."""

    def __init__(self, directory: Path, split: str, rank: int, size: int) -> None:
        """Set up; nothing is written before something is skipped.

        Args:
            directory: shared by all ranks.
            split: "train" or "validation".
            rank: data-parallel rank.
            size: number of data-parallel ranks.
        """
        self._directory, self._split, self._rank, self._size = directory, split, rank, size
        self._read: list[SkippedSample] = []
        self._lock = threading.Lock()

    def add(self, skipped: SkippedSample) -> None:
        """A sample could not be read; called by the thread that reads."""
        with self._lock:
            self._read.append(skipped)

    def hand_out(self, consumed_samples: int) -> None:
        """Write down what was skipped among the samples before `consumed_samples`."""
        if not self._read:
            return
        with self._lock:
            rows = [row for row in self._read if row.sample < consumed_samples]
            self._read = [row for row in self._read if row.sample >= consumed_samples]
        if rows:
            self._directory.mkdir(parents=True, exist_ok=True)
            with self._path(self._rank).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)

    def go_on(self, consumed_samples: int) -> None:
        """Continue from a state: what an attempt that died skipped beyond it will be read again."""
        with self._lock:
            self._read = []
        for path in sorted(self._directory.glob(f"{self._split}-*.jsonl")):
            if (
                int(path.stem.rpartition("-")[2]) % self._size == self._rank
            ):  # files of more ranks than now, too
                rows = [row for row in _rows(path) if row["sample"] < consumed_samples]
                path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def counts(self, consumed_samples: int) -> dict[str, float]:
        """How many samples and blocks all ranks skipped before `consumed_samples`, from their ledgers."""
        rows = [row for path in self._directory.glob(f"{self._split}-*.jsonl") for row in _rows(path)]
        rows = [row for row in rows if row["sample"] < consumed_samples]
        return {
            "data/skipped_samples": float(len({row["sample"] for row in rows})),
            "data/skipped_blocks": float(len({(row["shard"], row["block"]) for row in rows})),
        }

    def _path(self, rank: int) -> Path:
        return self._directory / f"{self._split}-{rank:05d}.jsonl"


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ledger; a line that a killed process did not finish is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def leave_out(batch: MicroBatch, rows: npt.NDArray[np.bool_]) -> MicroBatch:
    """Take samples out of every loss of a micro-batch.

    Args:
        batch: as `objectives` makes them.
        rows: [B] True for the samples to leave out.
    """
    batch = dict(batch)
    if "loss_mask" in batch:
        batch["loss_mask"] = batch["loss_mask"] * ~rows[:, None]
    if "masked_positions" in batch:
        keep = ~rows[batch["masked_positions"] // batch["tokens"].shape[1]]
        batch["masked_positions"], batch["masked_labels"] = (
            batch["masked_positions"][keep],
            batch["masked_labels"][keep],
        )
    if "next_sentence_labels" in batch:
        batch["next_sentence_labels"] = np.where(rows, IGNORED_LABEL, batch["next_sentence_labels"])
    return batch
