"""Checkpoints written beside the training: one snapshot at a time, in a thread of every rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pretrain.checkpoint.publish import CheckpointWriteError, publish, staging_directory, write_share
from pretrain.checkpoint.snapshot import Snapshot
from pretrain.config.schema import CheckpointConfig


class CheckpointWriter:
    """Writes snapshots, each rank its own share; the main rank's thread publishes.

    Attributes:
        seconds: that the last write took.
    """

    def __init__(self, keep: CheckpointConfig, attempt: str, check: Callable[[], None]) -> None:
        """Set up; nothing is started.

        Args:
            keep: which checkpoints stay.
            attempt: name of this attempt, for directories that are not finished.
            check: called on the main rank before a checkpoint gets its name; raises when it must not.
        """
        self._keep, self._attempt, self._check = keep, attempt, check
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._written: Path | None = None
        self._given_up = threading.Event()
        self.seconds = 0.0

    @property
    def failed(self) -> bool:
        """Whether the last write failed on this rank; `settle` tells all."""
        return self._error is not None

    @property
    def writing(self) -> bool:
        """Whether this rank's thread is still at work."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, snapshot: Snapshot) -> None:
        """Begin to write. The one before must have been settled."""
        assert self._thread is None, "one snapshot at a time"
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def take_written(self) -> Path | None:
        """The checkpoint that was published since the last call, on the main rank."""
        written, self._written = self._written, None
        return written

    def settle(self) -> None:
        """Wait until every rank has written what it began; called by all ranks together.

        Raises:
            CheckpointWriteError: on every rank, if any could not write.
        """
        main = dist.get_rank() == 0
        if not main:
            self.wait()
        # The main rank's thread may be waiting for the share of a rank that cannot even leave a note.
        if any(self._problems()):
            self._given_up.set()
        self.wait()
        problems = self._problems()
        if any(problems):
            if self._error is not None and not isinstance(self._error, OSError | CheckpointWriteError):
                raise self._error
            told = "; ".join(problem for problem in problems if problem)
            raise CheckpointWriteError(
                f"the checkpoint was not written ({told}); earlier checkpoints are untouched. Make room and "
                "run the same command again"
            )

    def _problems(self) -> list[Any]:
        mine = None if self._error is None else f"rank {dist.get_rank()}: {self._error}"
        problems: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(problems, mine)
        return problems

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Wait for this rank's thread only."""
        if self._thread:
            self._thread.join(timeout_seconds)
            if not self._thread.is_alive():
                self._thread = None

    def abandon(self, peers_seconds: float, timeout_seconds: float) -> None:
        """Wait after an error, when no collective may be possible any more.

        Args:
            peers_seconds: for the shares of other ranks, which may be gone.
            timeout_seconds: after that, for what this rank writes itself.
        """
        self.wait(peers_seconds)
        self._given_up.set()
        self.wait(timeout_seconds)

    def _write(self, snapshot: Snapshot) -> None:
        began = time.perf_counter()
        staging = staging_directory(snapshot.run_dir, snapshot.step, self._attempt)
        try:
            if snapshot.place.rank == 0:
                self._publish(snapshot, staging)
            else:
                write_share(snapshot, staging)
        except Exception as error:  # raised again by `settle`, in the thread that trains
            self._error = error
        self.seconds = time.perf_counter() - began

    def _publish(self, snapshot: Snapshot, staging: Path) -> None:
        share_error = None
        try:
            write_share(snapshot, staging)
        except OSError as error:
            share_error = error
            # Also after an error of its own: publish then removes what all ranks wrote.
            self._given_up.set()
        try:
            self._written = publish(snapshot, staging, self._keep, self._check, self._given_up)
        finally:
            if share_error:
                raise share_error
