"""The training loop, shared by pretraining and finetuning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from pretrain.checkpoint import CheckpointError, find_newest, load_checkpoint, save_checkpoint
from pretrain.checkpoint.files import write_text
from pretrain.checkpoint.manifest import Found
from pretrain.config import ConfigError, JobConfig, dump_yaml, exit_codes
from pretrain.config.identity import check_run_directory, lock_run_directory
from pretrain.flops import peak_tflops
from pretrain.logs import log_rank_output
from pretrain.metrics import Metrics, RunMetrics, SilentMetrics
from pretrain.parallel.collectives import broadcast_from_main
from pretrain.parallel.rng import seed_step
from pretrain.parallel.topology import Topology
from pretrain.parallel.zero import Engine
from pretrain.schedule import learning_rate
from pretrain.step import MicroBatch, StepMetrics, TrainingError, train_step
from pretrain.stop import StopSignal


class Stream(Protocol):
    """Training data: one item is one optimizer step's micro-batches for this data-parallel rank."""

    consumed_samples: int

    @property
    def consumed_tokens(self) -> int:
        """Tokens of the samples so far, each counted with the seq_length that it had."""

    def __next__(self) -> list[MicroBatch]:
        """The next optimizer step's micro-batches."""

    def state_dict(self) -> dict[str, Any]:
        """The cursor, JSON-able."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind a cursor."""

    def epochs(self) -> dict[str, float]:
        """Passes over each corpus so far."""


class Ledger(Protocol):
    """Where a run records what it read; only the main rank has one."""

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """An attempt starts."""

    def reached(self, step: int, consumed_samples: int) -> None:
        """Steps are done."""

    def saved(self, step: int, consumed_samples: int) -> None:
        """A checkpoint is written."""


@dataclass(kw_only=True)
class Job:
    """Everything the loop works with."""

    config: JobConfig
    topology: Topology
    engine: Engine
    stream: Stream
    evaluate: Callable[[Engine], dict[str, float]] | None = None
    """Metrics on held-out data, the same on all ranks; None never evaluates."""
    flops_per_step: float | None = None
    """Model FLOPs of an optimizer step of global_batch_size, for model_tflops and mfu."""
    extra_files: Mapping[str, Path] = field(default_factory=dict)
    """Copied into every checkpoint (the tokenizer)."""
    ledger: Ledger | None = None
    extra_metrics: Callable[[], Mapping[str, float]] = dict
    """More numbers for each log line; called on the main rank."""


def run(job: Job) -> int:
    """Train from the newest good checkpoint, or from the start, to `train_steps`.

    Returns:
        0 when the run is complete, 75 when a signal stopped it (saved; the same command goes on).
    """
    step = _resume(job)
    if job.ledger and step < job.config.training.train_steps:
        job.ledger.begin(step, job.stream.state_dict())
    with _metrics(job, step) as metrics:
        if step >= job.config.training.train_steps:
            metrics.say(f"already complete: {step} steps in {job.config.run_dir}")
            return 0
        return _fit(job, metrics, step)


def _fit(job: Job, metrics: Metrics, step: int) -> int:
    training, stop = job.config.training, StopSignal(job.topology)
    saved, clock = step, _Clock(job.stream, step)
    while step < training.train_steps and not stop.agreed():
        micro_batches = next(job.stream)
        seed_step(job.config.seed, step, job.topology)
        lr = learning_rate(job.config, step)
        result = train_step(job.engine, micro_batches, lr)
        step += 1
        _check_finite(job.config, step, result)
        if step % training.log_interval == 0 or step == training.train_steps:
            _log_step(job, metrics, step, lr, result, clock)
        if (
            job.evaluate
            and training.eval_interval
            and _due(step, training.eval_interval, training.train_steps)
        ):
            _log_evaluation(job, metrics, step)
            clock.restart(step)
        if step % job.config.checkpoint.save_interval == 0:
            saved = _save(job, metrics, step)
            clock.restart(step)
    if saved < step:
        _save(job, metrics, step)
    if step < training.train_steps:
        what = f"after step {step}, saved" if step else "before the first step, nothing to save"
        metrics.say(f"stopped by a signal {what}; run the same command again to go on")
        return exit_codes.STOPPED
    metrics.say(f"complete: {step} steps; metrics, TensorBoard and checkpoints in {job.config.run_dir}")
    return 0


@contextmanager
def claim_run_directory(config: JobConfig, topology: Topology) -> Iterator[None]:
    """Check a run directory against its earlier config, lock it against a second job, write config.yaml.

    Raises:
        ConfigError: On every rank, if it belongs to another config or another job is using it.
    """
    problem, lock = None, None
    if topology.is_main:
        try:
            lock = lock_run_directory(config.run_dir)
            check_run_directory(config)
            write_text(Path(config.run_dir) / "config.yaml", dump_yaml(config))
        except ConfigError as error:
            problem = error.problems
        except OSError as error:
            problem = [f"run_dir: cannot write {error.filename or config.run_dir}: {error.strerror}"]
    problem = broadcast_from_main(problem)
    if problem:
        raise ConfigError(problem)
    log_rank_output(Path(config.run_dir), topology.rank)
    yield
    if lock:
        lock.close()


def _resume(job: Job) -> int:
    """Load the newest checkpoint that verifies; returns its step, 0 in a new run.

    Raises:
        CheckpointError: If the run has checkpoints and none of them verifies.
    """
    run_dir = Path(job.config.run_dir)
    found: Found = broadcast_from_main(find_newest(run_dir) if job.topology.is_main else None)
    if job.topology.is_main:
        for text in found.passed_over:
            print(f"warning: {text}", flush=True)
    if found.directory is None and found.damaged:
        raise CheckpointError(
            f"{run_dir}: every checkpoint is damaged, so the run cannot go on; restore one, or start in "
            "another run_dir"
        )
    if found.directory is None:
        return 0
    trainer = load_checkpoint(job.engine, found.directory)
    job.stream.load_state_dict(trainer["stream"])
    if job.topology.is_main:
        print(f"resuming from {found.directory} (step {trainer['step']})", flush=True)
    return int(trainer["step"])


def _save(job: Job, metrics: Metrics, step: int) -> int:
    started = time.perf_counter()
    trainer = {"step": step, "stream": job.stream.state_dict()}
    directory = save_checkpoint(job.engine, job.config, trainer, job.extra_files)
    if job.ledger:
        job.ledger.saved(step, job.stream.consumed_samples)
    metrics.say(f"saved {directory} in {time.perf_counter() - started:.1f} s")
    return step


def _check_finite(config: JobConfig, step: int, result: StepMetrics) -> None:
    """Stop all ranks, the values are global, before a broken state can replace the good checkpoints."""
    if math.isfinite(result.losses["loss"]) and math.isfinite(result.grad_norm):
        return
    raise TrainingError(
        f"step {step}: loss {result.losses['loss']}, gradient norm {result.grad_norm}; stopped without "
        f"saving, the checkpoints in {config.run_dir} are from before. Lower optimizer.lr or raise "
        "schedule.lr_warmup_steps, in a new run_dir"
    )


def _due(step: int, interval: int, last: int) -> bool:
    return step % interval == 0 or step == last


class _Clock:
    """Time and data since the last log line, not counting saves and evaluations."""

    def __init__(self, stream: Stream, step: int) -> None:
        self._stream = stream
        self.restart(step)

    def restart(self, step: int) -> None:
        self._time, self._step = time.perf_counter(), step
        self._samples, self._tokens = self._stream.consumed_samples, self._stream.consumed_tokens

    def per_step(self, step: int) -> tuple[float, float, float]:
        """Seconds, samples and tokens of a step, on average."""
        steps = max(1, step - self._step)
        samples = self._stream.consumed_samples - self._samples
        tokens = self._stream.consumed_tokens - self._tokens
        return (time.perf_counter() - self._time) / steps, samples / steps, tokens / steps


def _log_step(job: Job, metrics: Metrics, step: int, lr: float, result: StepMetrics, clock: _Clock) -> None:
    seconds, samples, tokens = clock.per_step(step)
    clock.restart(step)
    total = job.config.training.train_steps
    if job.ledger:
        job.ledger.reached(step, job.stream.consumed_samples)
    values = dict(result.losses)
    values |= {"grad_norm": result.grad_norm, "lr": lr}
    values |= {
        "consumed_samples": job.stream.consumed_samples,
        "consumed_tokens": job.stream.consumed_tokens,
        "step_seconds": seconds,
    }
    values["tokens_per_second"] = tokens / seconds
    if job.flops_per_step:
        flops = job.flops_per_step * samples / job.config.batch.global_batch_size
        values["model_tflops"] = flops / seconds / 1e12
        peak = peak_tflops(job.topology.device)
        if peak:
            values["mfu"] = values["model_tflops"] / (peak * job.topology.world_size)
    values |= {f"epoch/{name}": epoch for name, epoch in job.stream.epochs().items()}
    if job.topology.is_main:
        values |= job.extra_metrics()
    metrics.write(step, values)
    left = timedelta(seconds=int(seconds * (total - step)))
    metrics.live(
        f"step {step}/{total} | loss {values['loss']:.4f} | grad norm {result.grad_norm:.2f} | lr {lr:.2e} | "
        f"{values['tokens_per_second']:,.0f} tokens/s | ETA {left}"
    )


def _log_evaluation(job: Job, metrics: Metrics, step: int) -> None:
    assert job.evaluate is not None
    values = {f"eval/{name}": value for name, value in job.evaluate(job.engine).items()}
    metrics.write(step, values)
    metrics.say(f"step {step} | " + " | ".join(f"{name} {value:.4f}" for name, value in values.items()))


@contextmanager
def _metrics(job: Job, step: int) -> Iterator[Metrics]:
    if not job.topology.is_main:
        yield SilentMetrics()
        return
    with RunMetrics(Path(job.config.run_dir), step) as metrics:
        yield metrics
