"""What steps and evaluations tell: metrics, the live line, the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from pretrain.bad_steps import BadSteps
from pretrain.flops import peak_tflops
from pretrain.job import Job, Stream
from pretrain.metrics import Metrics, RunMetrics, SilentMetrics
from pretrain.step import StepMetrics


class Clock:
    """Time and data since the last log line, not counting saves and evaluations."""

    def __init__(self, stream: Stream, step: int) -> None:
        self._stream = stream
        self.restart(step)

    def restart(self, step: int) -> None:
        """Count from here."""
        self._time, self._step = time.perf_counter(), step
        self._samples, self._tokens = self._stream.consumed_samples, self._stream.consumed_tokens
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """Training waited for data."""
        self._waited += seconds

    def waited_per_step(self, step: int) -> float:
        """Seconds that a step waited for data, on average."""
        return self._waited / max(1, step - self._step)

    def per_step(self, step: int) -> tuple[float, float, float]:
        """Seconds, samples and tokens of a step, on average."""
        steps = max(1, step - self._step)
        samples = self._stream.consumed_samples - self._samples
        tokens = self._stream.consumed_tokens - self._tokens
        return (time.perf_counter() - self._time) / steps, samples / steps, tokens / steps


class Reporter:
    """Writes down how a job goes; every rank has one, the main one's is seen."""

    def __init__(self, job: Job, metrics: Metrics, step: int) -> None:
        self._job, self._metrics = job, metrics
        self._clock = Clock(job.stream, step)
        self._stall_seconds: float | None = None

    def say(self, text: str) -> None:
        """Print one line."""
        self._metrics.say(text)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """What happens inside counts as `data_wait_seconds`, and as part of `step_seconds`."""
        begin = time.perf_counter()
        yield
        self._clock.waited(time.perf_counter() - begin)

    def step(self, step: int, lr: float, result: StepMetrics, bad: BadSteps) -> None:
        """Log a step.

        Raises:
            ReplacedError: a newer attempt writes these files now.
        """
        job, total = self._job, self._job.config.training.train_steps
        if job.topology.is_main:
            job.claim.check()
        seconds, samples, tokens = self._clock.per_step(step)
        waited = self._clock.waited_per_step(step)
        self._clock.restart(step)
        extra = job.extra_metrics() if job.topology.is_main else {}
        if job.ledger:
            job.ledger.reached(step, job.stream.consumed_samples, extra)
        values = dict(result.losses)
        values |= {"grad_norm": result.grad_norm, "lr": lr} | job.engine.loss_scale.metrics()
        values |= {
            "consumed_samples": job.stream.consumed_samples,
            "consumed_tokens": job.stream.consumed_tokens,
            "skipped_steps": bad.skipped,
            "rollbacks": bad.rollbacks,
        }
        values |= self._speed(seconds, samples, tokens) | {"data_wait_seconds": waited}
        values |= {f"epoch/{name}": epoch for name, epoch in job.stream.epochs().items()}
        values |= extra
        waited_for_copy = job.engine.pending_reads.take_waited_seconds()
        if self._stall_seconds is not None:
            values["save_stall_seconds"] = self._stall_seconds + waited_for_copy
            self._stall_seconds = None
        self._metrics.write(step, values)
        left = timedelta(seconds=int(seconds * (total - step)))
        left_out = values.get("data/skipped_samples", 0)
        self._metrics.live(
            f"step {step}/{total} | loss {values['loss']:.4f} | grad norm {result.grad_norm:.2f} | "
            f"lr {lr:.2e} | {values['tokens_per_second']:,.0f} tokens/s | ETA {left}"
            + (f" | {left_out:,.0f} samples of damaged blocks left out" if left_out else "")
        )

    def evaluation(self, step: int, stop_now: Callable[[], bool]) -> bool:
        """Evaluate and log it; False when it was broken off to stop."""
        assert self._job.evaluate is not None

        def stop_or_go_on() -> bool:
            self._job.watchdog.enter("evaluation", step)
            return stop_now()

        found = self._job.evaluate(self._job.engine, stop_or_go_on)
        if found is not None:
            values = {f"eval/{name}": value for name, value in found.items()}
            self._metrics.write(step, values)
            told = " | ".join(f"{name} {value:.4f}" for name, value in values.items())
            self._metrics.say(f"step {step} | {told}")
            if self._job.selection and (verdict := self._job.selection.evaluated(self._job, step, found)):
                self._metrics.say(f"step {step} | {verdict}")
        self._clock.restart(step)
        return found is not None

    def stalled(self, step: int, seconds: float) -> None:
        """Training waited for a save; told with the next logged step."""
        self._stall_seconds = (self._stall_seconds or 0.0) + seconds
        self._clock.restart(step)

    def _speed(self, seconds: float, samples: float, tokens: float) -> dict[str, float]:
        job, values = self._job, {"step_seconds": seconds, "tokens_per_second": tokens / seconds}
        if job.flops_per_step:
            flops = job.flops_per_step * samples / job.config.batch.global_batch_size
            values["model_tflops"] = flops / seconds / 1e12
            peak = peak_tflops(job.topology.device)
            if peak:
                values["mfu"] = values["model_tflops"] / (peak * job.topology.world_size)
        return values


@contextmanager
def open_metrics(job: Job, step: int) -> Iterator[Metrics]:
    """The metrics of a run on the main rank, silence on the others."""
    if not job.topology.is_main:
        yield SilentMetrics()
        return
    with RunMetrics(job.run_dir, step) as metrics:
        yield metrics
