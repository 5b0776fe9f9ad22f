"""One optimizer step, and one evaluation: the only places where losses are normalised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from pretrain.config import exit_codes
from pretrain.faults import fault
from pretrain.models import PretrainingModel
from pretrain.parallel.topology import Topology
from pretrain.parallel.zero import Engine

MicroBatch = dict[str, Any]
"""Names to numpy arrays, as streams give them."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimizer step reports; all but `first_loss` is the same on every rank."""

    losses: dict[str, float]
    """`loss` and its parts, each a mean over all targets of the step."""
    grad_norm: float
    applied: bool
    overflow: bool = False
    """The update was skipped because fp16 gradients overflowed; the loss scale is lower now."""
    first_loss: Callable[[], float] = lambda: math.nan
    """Mean loss over this rank's first micro-batch, with the weights from before the update. Computed when it
    is asked for, before the next step: on CUDA the host waits for it."""


class TrainingError(Exception):
    """Training that cannot go on: nothing to learn from, a loss or a gradient that is not finite."""

    exit_code = exit_codes.DIVERGED


def train_step(
    engine: Engine,
    micro_batches: Sequence[MicroBatch],
    lr: float,
    accept: Callable[[float], bool] = lambda loss: True,
) -> StepMetrics:
    """Forward and backward over this rank's micro-batches, then one update.

    Every loss is divided by the global number of its targets in the step (all ranks, all micro-batches), so
    the result does not depend on how samples are dealt to ranks, also where masks differ.

    Args:
        engine: the model on its ranks.
        micro_batches: of this rank.
        lr: learning rate of the update.
        accept: asked with the global loss before the update, one answer on all ranks; False discards it.

    Raises:
        TrainingError: on every rank, the step has no target at all.
    """
    on_host = [to_tensors(batch) for batch in micro_batches]
    batches = [to_device(batch, engine.topology.device) for batch in micro_batches]
    weights = _objective(engine).loss_weights()
    counts = _global_counts(engine, on_host)
    if not any(counts.values()):
        raise TrainingError(
            "an optimizer step has no target to learn from on any rank: all of its samples were left out; "
            "with data.on_bad_block: skip, data_cache/skipped in run_dir says why; repair the corpus"
        )
    counts = _divisors(counts)
    engine.begin_step(len(batches))
    sums = dict.fromkeys(weights, torch.zeros((), device=engine.topology.device))
    first: dict[str, Tensor] = {}
    for batch in batches:
        with record_function("phase: forward"):
            parts = engine.forward(batch)
        with record_function("phase: backward"):
            engine.backward(sum(weights[name] * parts[name] / counts[name] for name in weights))  # type: ignore[arg-type]
        found = {name: parts[name].detach().float() for name in weights}
        sums, first = {name: sums[name] + found[name] for name in weights}, first or found
    losses = _mean_losses(engine, sums, counts)
    first_loss = partial(mean_loss, engine, on_host[0], first)
    with record_function("phase: update"):
        outcome = engine.step(lr) if accept(losses["loss"]) else engine.discard()
    return StepMetrics(losses, outcome.grad_norm, outcome.applied, outcome.overflow, first_loss)


def mean_loss(engine: Engine, batch: dict[str, Tensor], parts: dict[str, Tensor]) -> float:
    """Mean loss over one micro-batch of this rank, from the summed losses that its forward pass returned.

    Args:
        engine: the model on its ranks.
        batch: on the host: counting its targets on a GPU would wait for it.
        parts: on any device.
    """
    weights, counts = _objective(engine).loss_weights(), _objective(engine).target_counts(batch)
    return sum(weights[name] * float(parts[name]) / max(1.0, float(counts[name])) for name in weights)


def evaluate(engine: Engine, steps: Iterable[Sequence[MicroBatch]]) -> dict[str, float]:
    """Mean losses over an evaluation set, dropout off; the same on every rank."""
    losses = evaluate_unless(lambda: False, engine, steps)
    assert losses is not None
    return losses


@torch.no_grad()
def evaluate_unless(
    stop_now: Callable[[], bool], engine: Engine, steps: Iterable[Sequence[MicroBatch]]
) -> dict[str, float] | None:
    """Like `evaluate`, broken off on request.

    Args:
        stop_now: asked before each step, the same answer on every rank; True breaks off.
        engine: the model on its ranks.
        steps: micro-batches of this rank; as many steps on every rank.

    Returns:
        The losses, or None when it was broken off.
    """
    weights = _objective(engine).loss_weights()
    engine.eval_mode()
    sums = {name: torch.zeros((), device=engine.topology.device) for name in weights}
    counts = dict.fromkeys(weights, 0.0)
    for micro_batches in steps:
        fault("evaluation")
        if stop_now():
            engine.train_mode()
            return None
        for micro_batch in micro_batches:
            parts = engine.forward(to_device(micro_batch, engine.topology.device))
            for name, count in _objective(engine).target_counts(to_tensors(micro_batch)).items():
                sums[name] += parts[name].float()
                counts[name] += count
    engine.train_mode()
    return _mean_losses(engine, sums, _divisors(_summed(counts, engine.topology)))


def to_tensors(batch: MicroBatch) -> dict[str, Tensor]:
    """Arrays to tensors of the same memory, on the host."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}


def to_device(batch: MicroBatch, device: torch.device) -> dict[str, Tensor]:
    """Arrays to tensors on the compute device; a GPU copies them while the host goes on."""
    tensors = to_tensors(batch)
    if device.type == "cuda":  # of other memory a copy waits for what the GPU does at the moment
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def _objective(engine: Engine) -> PretrainingModel:
    return cast(PretrainingModel, engine.model)


def _global_counts(engine: Engine, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    counts = dict.fromkeys(_objective(engine).loss_weights(), 0.0)
    for batch in batches:
        for name, count in _objective(engine).target_counts(batch).items():
            counts[name] += count
    return _summed(counts, engine.topology)


def _summed(counts: dict[str, float], topology: Topology) -> dict[str, float]:
    """Sum over data-parallel ranks."""
    values = torch.tensor(list(counts.values()), dtype=torch.float64, device=topology.device)
    dist.all_reduce(values, group=topology.data_parallel_group)
    return dict(zip(counts, values.tolist(), strict=True))


def _divisors(counts: dict[str, float]) -> dict[str, float]:
    """At least 1: one of several losses may have no target, as BERT's second without sentence pairs."""
    return {name: max(1.0, count) for name, count in counts.items()}


def _mean_losses(engine: Engine, sums: dict[str, Tensor], counts: dict[str, float]) -> dict[str, float]:
    values = torch.stack([sums[name].double() for name in sums])
    dist.all_reduce(values, group=engine.topology.data_parallel_group)
    parts = {name: value / counts[name] for name, value in zip(sums, values.tolist(), strict=True)}
    weights = _objective(engine).loss_weights()
    return {"loss": sum(weights[name] * parts[name] for name in weights)} | parts
