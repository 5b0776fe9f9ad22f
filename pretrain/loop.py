"""The training loop, shared by pretraining and finetuning."""

from __future__ import annotations

from functools import partial

from torch.profiler import record_function

from pretrain.bad_steps import BadSteps
from pretrain.config import exit_codes
from pretrain.consent import Consent
from pretrain.faults import fault
from pretrain.job import Job
from pretrain.parallel.rng import seed_step
from pretrain.parity.replicas import check_replicas
from pretrain.profiling import StepProfile
from pretrain.reporting import Reporter, open_metrics
from pretrain.saving import Position, Saves, resume
from pretrain.schedule import learning_rate
from pretrain.step import train_step
from pretrain.stop import StopFile


def run(job: Job) -> int:
    """Train from the newest good checkpoint, or from the start, to `train_steps`.

    Returns:
        0 when the run is complete, 75 when it was asked to stop (saved; the same command goes on).
    """
    position, bad_steps = resume(job)
    total = job.config.training.train_steps
    if job.selection:
        job.selection.resume(job, position.step)
    if job.ledger and position.step < total:
        job.ledger.begin(position.step, job.stream.state_dict())
    with open_metrics(job, position.step) as metrics:
        if position.step >= total:
            metrics.say(f"already complete: {position.step} steps in {job.config.run_dir}")
            return exit_codes.OK
        job.signals.defer()
        reporter = Reporter(job, metrics, position.step)
        with job.watchdog, Saves(job, bad_steps, reporter, position) as saves:
            return _fit(job, reporter, saves, bad_steps, position)


def _fit(job: Job, reporter: Reporter, saves: Saves, bad_steps: BadSteps, position: Position) -> int:
    training = job.config.training
    consent = Consent(job.topology, bad_steps, partial(_wants_stop, job, saves, StopFile(job.run_dir)))
    if position.evaluation_due and not consent.stop_now():
        position.evaluation_due = not reporter.evaluation(position.step, consent.stop_now)
    profile = StepProfile(job, reporter.say)
    while position.step < training.train_steps and not consent.stop and not job.is_finished_early:
        job.watchdog.enter("data", position.step + 1)
        profile.step_begins(position.step)
        with record_function("phase: data"), reporter.waiting_for_data():
            micro_batches = next(job.stream)
        fault("train")
        seed_step(job.config.seed, position.step, job.topology)
        lr = learning_rate(job.config, position.step)
        position.step += 1
        job.watchdog.enter("train", position.step)
        result = train_step(job.engine, micro_batches, lr, partial(consent.accept, position.step))
        reason = bad_steps.count(position.step, result)
        if _due(position.step, training.replica_check_interval, training.train_steps):
            check_replicas(job.engine, micro_batches[0], position.step)
        if reason:
            saves.note_bad_step(position.step, reason)
        else:
            position.probe = micro_batches[0]
            saves.offer_probe(micro_batches[0], result.first_loss)
        if reason or _due(position.step, training.log_interval, training.train_steps):
            with record_function("phase: logging"):
                reporter.step(position.step, lr, result, bad_steps)
        if bad_steps.must_roll_back:
            saves.roll_back(position)
        if job.evaluate and _due(position.step, training.eval_interval, training.train_steps):
            position.evaluation_due = not reporter.evaluation(position.step, consent.stop_now)
        if position.step % job.config.checkpoint.save_interval == 0 and not bad_steps.in_a_row:
            saves.save(position)
        saves.poll()
    profile.finish(position.step)
    saves.finish(position)
    unfinished = position.step < training.train_steps and not job.is_finished_early
    if unfinished or position.evaluation_due:
        where = (
            f"after step {position.step}, saved"
            if position.step
            else "before the first step, nothing to save"
        )
        reporter.say(f"stopped {where}; run the same command again to go on")
        return exit_codes.STOPPED
    reporter.say(f"complete: {position.step} steps; metrics, TensorBoard and checkpoints in {job.run_dir}")
    return exit_codes.OK


def _wants_stop(job: Job, saves: Saves, file: StopFile) -> bool:
    asked = job.signals.reason(job.config.training.time_limit_seconds) is not None
    return saves.failed or asked or (job.topology.is_main and file.look())


def _due(step: int, interval: int, last: int) -> bool:
    return interval > 0 and (step % interval == 0 or step == last)
