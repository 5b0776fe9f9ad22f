"""What happens to samples whose block is damaged, where `data.on_bad_block` is `skip`.

Such a sample stays in its place in its batch, but has no part in the loss. So no rank has to tell another:
the samples of every batch are those of an undamaged corpus, and the loss is normalised by what is left.

Each data-parallel rank writes what it skipped into a file of its own, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pretrain.data.objectives import MicroBatch

SKIPPED_DIRECTORY = "skipped"
IGNORED_LABEL = -100
"""What torch's cross_entropy takes for no target at all."""


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """One line of such a file.

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


class SkipLog:
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
        self._seen: dict[Path, _Seen] = {}
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
        self._seen.clear()
        for path in sorted(self._directory.glob(f"{self._split}-*.jsonl")):
            if (
                int(path.stem.rpartition("-")[2]) % self._size == self._rank
            ):  # those of more ranks than now, too
                _cut(path, consumed_samples)

    def left_out(self, consumed_samples: int) -> dict[int, tuple[str, int]]:
        """(shard, block) of every sample before `consumed_samples` that a rank skipped, from their files."""
        found: dict[int, tuple[str, int]] = {}
        for path in self._directory.glob(f"{self._split}-*.jsonl"):
            seen = self._seen[path] = _read_on(path, self._seen.get(path))
            found |= {
                sample: (shard, block) for sample, shard, block in seen.rows if sample < consumed_samples
            }
        return found

    def counts(self, consumed_samples: int) -> dict[str, float]:
        """How many samples and blocks all ranks skipped before `consumed_samples`."""
        found = self.left_out(consumed_samples)
        return {
            "data/skipped_samples": float(len(found)),
            "data/skipped_blocks": float(len(set(found.values()))),
        }

    def _path(self, rank: int) -> Path:
        return self._directory / f"{self._split}-{rank:05d}.jsonl"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read of a file so far, so that counting again reads only what is new.

    Attributes:
        inode: of the file; another one was written anew.
        offset: bytes of whole lines.
        rows: (sample, shard, block) of each.
    """

    inode: int
    offset: int
    rows: list[tuple[int, str, int]]


def _read_on(path: Path, seen: _Seen | None) -> _Seen:
    """Read a file from where it was left; a line that is not finished is left for later."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if seen is None or seen.inode != status.st_ino or seen.offset > status.st_size:
            seen = _Seen(status.st_ino, 0, [])
        file.seek(seen.offset)
        new = file.read()
    new = new[: new.rfind(b"\n") + 1]
    rows = [json.loads(line) for line in new.splitlines()]
    seen.rows.extend((row["sample"], sys.intern(row["shard"]), row["block"]) for row in rows)
    return replace(seen, offset=seen.offset + len(new))


def _cut(path: Path, consumed_samples: int) -> None:
    """Keep the whole lines of samples before `consumed_samples`; other processes may be reading."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["sample"] < consumed_samples]
    if len(kept) < len(lines):
        draft = path.with_suffix(".partial")
        draft.write_bytes(b"".join(kept))
        draft.replace(path)


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
