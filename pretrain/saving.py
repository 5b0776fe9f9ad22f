"""Saving and going back: the checkpoints of a job, as the loop sees them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pretrain.bad_steps import BadSteps, append_record, read_record
from pretrain.checkpoint import CheckpointError, find_newest, load_checkpoint
from pretrain.checkpoint.host_copy import HostMemory
from pretrain.checkpoint.manifest import Found, read_manifest
from pretrain.checkpoint.probe import Probe, trains_as_it_evaluates
from pretrain.checkpoint.snapshot import take_snapshot
from pretrain.checkpoint.writer import CheckpointWriter
from pretrain.job import Job
from pretrain.parallel.collectives import broadcast_from_main
from pretrain.reporting import Reporter
from pretrain.step import MicroBatch, TrainingError

PEERS_SECONDS, FLUSH_SECONDS = 10.0, 60.0
"""For a checkpoint that is being written while the job ends with an error: for the shares of other ranks,
which may be gone; then for this rank's own."""


@dataclass(slots=True)
class Position:
    """How far the run is."""

    step: int
    """Optimizer steps done."""
    evaluation_due: bool = False
    """The evaluation of this step was broken off by a stop."""
    probe: MicroBatch | None = None
    """Of the last good step; its loss is saved with the weights."""


def resume(job: Job) -> tuple[Position, BadSteps]:
    """Load the newest checkpoint that verifies, or begin at step 0.

    Raises:
        CheckpointError: If the run has checkpoints and none of them verifies.
    """
    main, run_dir = job.topology.is_main, job.run_dir
    found: Found = broadcast_from_main(find_newest(run_dir) if main else None)
    if main:
        for text in found.passed_over:
            print(f"warning: {text}", flush=True)
    if found.directory is None and found.damaged:
        raise CheckpointError(
            f"{run_dir}: every checkpoint is damaged, so the run cannot go on; restore one, or start in "
            "another run_dir"
        )
    trainer: dict[str, Any] = {"step": 0}
    probe = None
    if found.directory is not None:
        loaded = load_checkpoint(job.engine, found.directory)
        trainer, probe = loaded.trainer, loaded.probe
        if "stream" in trainer:  # imported weights have none: training begins with them
            job.stream.load_state_dict(trainer["stream"])
        if main:
            text = f"resuming from {found.directory} (step {trainer['step']}); {loaded.proof}"
            print(text, flush=True)
    position = Position(int(trainer["step"]), bool(trainer.get("evaluation_due")), probe)
    known = broadcast_from_main(read_record(run_dir, position.step) if main else None)
    bad_steps = BadSteps(job.config.bad_steps, known)
    if "bad_steps" in trainer:
        bad_steps.load_state_dict(trainer["bad_steps"])
    return position, bad_steps


class Saves:
    """Writes the checkpoints of a job, beside the training where `checkpoint.async_save` says so."""

    def __init__(self, job: Job, bad_steps: BadSteps, reporter: Reporter, position: Position) -> None:
        self._job, self._bad_steps, self._reporter = job, bad_steps, reporter
        self._writer = CheckpointWriter(job.config.checkpoint, job.claim.attempt, job.claim.check)
        self._memory = HostMemory()
        self._probe: Probe | None = None
        self._last = (position.step, position.evaluation_due)
        self._samples = job.stream.consumed_samples

    def __enter__(self) -> Saves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._probe:
            self._probe.close()  # after an error no collective may be possible any more
        self._writer.abandon(PEERS_SECONDS, FLUSH_SECONDS)

    @property
    def failed(self) -> bool:
        """A save failed on this rank; `save` and `finish` tell."""
        return self._writer.failed

    def save(self, position: Position) -> None:
        """Save the state after a step; all ranks together. Waits for the save before.

        Where the next step's forward pass can bring the probe loss, training does not wait for it here.

        Raises:
            CheckpointWriteError: on every rank, when one could not write this or the save before.
        """
        job, began = self._job, time.perf_counter()
        job.watchdog.enter("save", position.step)
        self._settle()
        if job.topology.is_main:
            job.claim.check()
        trainer = {
            "step": position.step,
            "evaluation_due": position.evaluation_due,
            "stream": job.stream.state_dict(),
            "bad_steps": self._bad_steps.state_dict(),
        }
        probe = self._probe = Probe(position.probe)
        if not (job.config.checkpoint.async_save and trains_as_it_evaluates(job.config)):
            probe.settle(job.engine)
        snapshot = take_snapshot(job.engine, job.config, trainer, job.extra_files, self._memory, probe)
        self._last, self._samples = (position.step, position.evaluation_due), job.stream.consumed_samples
        self._writer.start(snapshot)
        if not job.config.checkpoint.async_save:
            self._settle()
        self._reporter.stalled(position.step, time.perf_counter() - began)

    def offer_probe(self, batch: MicroBatch, loss: Callable[[], float]) -> None:
        """Probe of the save before a good step, if that has none yet; all ranks together, after the step.

        A bad step changes no weights, so that the probe can still come from the one after it.

        Args:
            batch: Of this rank, the first micro-batch of the step.
            loss: Gives its mean loss, before the update.
        """
        if self._probe and not self._probe.is_there:
            self._probe.offer(batch, loss())

    def poll(self) -> None:
        """Tell of a save that has ended meanwhile; the main rank does, nobody waits."""
        written = self._writer.take_written()
        if written is None:
            return
        if self._job.ledger:
            self._job.ledger.saved(self._last[0], self._samples)
        self._reporter.say(f"saved {written} in {self._writer.seconds:.1f} s")

    def finish(self, position: Position) -> None:
        """Save what is not saved yet, and wait for it, at the end of a job.

        Raises:
            CheckpointWriteError: on every rank, when one could not write.
        """
        if position.step and self._last != (position.step, position.evaluation_due):
            self.save(position)
        self._job.watchdog.enter("last save", position.step)
        self._settle()

    def _settle(self) -> None:
        if self._probe:  # first, as the main rank's writer waits for it
            self._probe.settle(self._job.engine)
        self._writer.settle()
        self.poll()

    def note_bad_step(self, step: int, reason: str) -> None:
        """Record that a step had no update."""
        self._reporter.say(f"step {step}: {reason}; its update was left out")
        self._record("skip", step=step, reason=reason)

    def roll_back(self, position: Position) -> None:
        """Take the weights of the last good checkpoint, stay behind the data read since, and save that.

        Raises:
            TrainingError: there is no such checkpoint, or it was done too often.
        """
        job, bad = self._job, self._bad_steps
        job.watchdog.enter("roll back", position.step)
        self._settle()
        good_until = position.step - bad.in_a_row
        found = (
            find_newest(job.run_dir, good_until, _saved_between_good_steps) if job.topology.is_main else None
        )
        directory = broadcast_from_main(found and found.directory)
        if directory is None:
            raise TrainingError(
                f"step {position.step}: {bad.in_a_row} bad steps in a row and no checkpoint from before "
                "them; stopped without saving. Lower optimizer.lr or raise schedule.lr_warmup_steps, in a "
                "new run_dir"
            )
        bad.rolled_back(read_manifest(directory)["trainer"]["bad_steps"])
        trainer = load_checkpoint(job.engine, directory).trainer
        self._reporter.say(
            f"step {position.step}: too many bad steps in a row; weights are those of {directory} again, the "
            f"data of steps {trainer['step'] + 1} to {position.step} is passed over"
        )
        self._record("rollback", step=position.step, to_step=trainer["step"])
        self.save(position)

    def _record(self, kind: str, **values: Any) -> None:
        job = self._job
        if job.topology.is_main:
            job.claim.check()
            append_record(job.run_dir, kind, **values)
        if job.ledger:
            job.ledger.write("bad_step" if kind == "skip" else kind, **values)


def _saved_between_good_steps(trainer: dict[str, Any]) -> bool:
    return "bad_steps" in trainer and trainer["bad_steps"]["in_a_row"] == 0
