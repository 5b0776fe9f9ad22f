"""Answers and scores of a model on labelled rows: the same whatever the layout of the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune.batches import Examples, evaluation_batches
from finetune.tasks.task import Answer, Task
from pretrain.data.steps import RankPlan
from pretrain.parallel.collectives import broadcast_from_main
from pretrain.parallel.topology import Topology
from pretrain.parallel.zero import Engine
from pretrain.step import to_device

Forward = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows with the examples they became."""

    rows: Sequence[Any]
    examples: Examples


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        scores: `loss` and the task's own, the same on every rank.
        answers: One per row, on the main rank only; none for a task that writes text.
    """

    scores: dict[str, float]
    answers: list[Answer] = field(default_factory=list)


@dataclass(slots=True)
class Outputs:
    """What this rank's model computed.

    Attributes:
        logits: By the example's number, without padding.
        sums: Each loss, summed.
        counts: What each of them is divided by.
    """

    logits: dict[int, npt.NDArray[Any]]
    sums: dict[str, float]
    counts: dict[str, float]


def evaluate(
    engine: Engine,
    task: Task,
    labels: Sequence[str],
    data: Labelled,
    micro_batch_size: int,
    stop_now: Callable[[], bool],
) -> Evaluation | None:
    """Answer and score all rows over all ranks, dropout off.

    Returns:
        None where `stop_now`, asked before each batch by all ranks together, broke it off.
    """
    topology = engine.topology
    plan = plan_of(topology, micro_batch_size)

    def forward(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if stop_now():
            raise _BrokenOff
        return engine.forward(batch)

    engine.eval_mode()
    try:
        with torch.no_grad():
            outputs = run_model(engine.model, forward, data.examples, plan, topology.device)
    except _BrokenOff:
        return None
    finally:
        engine.train_mode()
    gathered = _gather(outputs, topology)
    evaluation = None
    if topology.is_main:
        evaluation = judge(task, labels, data, gathered)
    scores: dict[str, float] = broadcast_from_main(evaluation.scores if evaluation else None)
    return evaluation or Evaluation(scores)


class _BrokenOff(Exception):
    """An evaluation was asked to stop."""


def judge(task: Task, labels: Sequence[str], data: Labelled, parts: Sequence[Outputs]) -> Evaluation:
    """Answers and scores from the outputs of all ranks."""
    logits: dict[int, npt.NDArray[Any]] = {}
    for part in parts:
        logits |= part.logits
    ordered = [logits[n] for n in range(len(data.examples))] if logits else []
    (name,) = parts[0].sums  # a task has one loss
    loss = sum(part.sums[name] for part in parts) / max(1.0, sum(part.counts[name] for part in parts))
    answers = task.answers(ordered, data.examples, data.rows, labels) if ordered else []
    return Evaluation({"loss": loss, **task.score(answers, data.rows, labels, loss)}, answers)


def run_model(
    model: Any, forward: Forward, examples: Examples, plan: RankPlan, device: torch.device
) -> Outputs:
    """This rank's share of all examples through the model.

    Args:
        model: With `loss_weights` and `target_counts`; its losses are asked for if the examples have targets.
        forward: Runs it on a batch of tensors.
        examples: All, the same on every rank.
        plan: Which of them are this rank's.
        device: Of the model.
    """
    sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in model.loss_weights()}
    counts = dict.fromkeys(sums, 0.0)
    logits: dict[int, npt.NDArray[Any]] = {}
    lengths = examples.lengths
    for numbers, micro_batch in evaluation_batches(examples, plan):
        batch = to_device(micro_batch, device)
        parts = forward(batch)
        if sums.keys() <= parts.keys():
            for name, count in model.target_counts(batch).items():
                sums[name] += parts[name].double()
                counts[name] += count
        if "logits" in parts:
            for number, values in zip(numbers.tolist(), parts["logits"].float().cpu().numpy(), strict=True):
                if number < len(examples):  # a copy: a view would keep the whole batch
                    logits[number] = np.array(values[: lengths[number]] if values.ndim == 2 else values)
    return Outputs(logits, {name: float(value) for name, value in sums.items()}, counts)


@torch.no_grad()
def run_alone(model: nn.Module, examples: Examples, batch_size: int) -> Outputs:
    """All examples through a whole model in this process."""
    model.eval()
    plan = RankPlan(batch_size, batch_size, 0, 1)
    return run_model(model, lambda batch: model(**batch), examples, plan, next(model.parameters()).device)


def plan_of(topology: Topology, micro_batch_size: int) -> RankPlan:
    """This rank's share of an evaluation."""
    size = topology.data_parallel_size
    return RankPlan(micro_batch_size * size, micro_batch_size, topology.data_parallel_rank, size)


def _gather(outputs: Outputs, topology: Topology) -> list[Outputs]:
    """The outputs of all data-parallel ranks on the main rank; tensor-parallel ranks have the same ones."""
    if topology.tensor_model_parallel_rank:
        return []
    box: list[Any] | None = [None] * topology.data_parallel_size if topology.is_main else None
    dist.gather_object(outputs, box, dst=0, group=topology.data_parallel_group)
    return box or []
