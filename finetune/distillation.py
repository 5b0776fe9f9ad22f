"""A student that also learns from a larger model's logits and hidden states.

The teacher stands outside of the student's modules: neither engine nor checkpoint know it. It answers the
micro-batch of each training step, without gradient; evaluations see the student alone.

Legend: B micro_batch_size, S longest sequence, H hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.batches import IGNORED_LABEL
from finetune.config import FinetuneConfig
from finetune.distillation_config import DistillationConfig
from finetune.rows import listed
from finetune.source import Source, read_source
from finetune.tasks.task import Task
from finetune.text import read_tokenizer
from pretrain.checkpoint import load_parameters
from pretrain.checkpoint.manifest import wanted_by
from pretrain.config import ConfigError
from pretrain.models.bert import BertLayer
from pretrain.models.vocabulary import whole_logits
from pretrain.parallel.topology import Topology

Batch = dict[str, Tensor]


def read_teacher(
    config: FinetuneConfig, tokenizer: Mapping[str, bytes], labels: tuple[str, ...]
) -> Source | None:
    """The checkpoint of the teacher; None for a run without.

    Args:
        config: Of the run.
        tokenizer: The student's, which made the data (`finetune.text.read_tokenizer`).
        labels: Of the training data.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: It does not fit the student.
    """
    if config.distillation is None:
        return None
    with wanted_by("distillation.teacher"):
        teacher = read_source(Path(config.distillation.teacher))
    of, model = teacher.architecture, config.model
    assert model is not None  # with_model has filled it in
    kind = None if of.task is None else of.task.kind
    problems = []
    if kind != config.task.kind and not (
        config.task.kind == "sft" and kind is None and of.model.kind == "gpt"
    ):
        problems.append(f"is a model for {kind or 'pretraining'}, the run's task.kind is {config.task.kind}")
    elif (of.labels or ()) != labels:
        problems.append(f"has the labels {listed(of.labels or ())}; data.train has {listed(labels)}")
    if _describing(read_tokenizer(teacher.directory)) != _describing(tokenizer):
        problems.append(f"has another tokenizer than {config.pretrained}")
    if of.model.max_position_embeddings < config.batch.seq_length:
        problems.append(f"has {of.model.max_position_embeddings} positions, fewer than batch.seq_length")
    if config.distillation.hidden_weight and of.model.hidden_size != model.hidden_size:
        problems.append(
            f"has hidden_size {of.model.hidden_size}, the student {model.hidden_size}: set hidden_weight: 0"
        )
    if problems:
        raise ConfigError([f"distillation.teacher: {teacher.directory} {problem}" for problem in problems])
    return teacher


def add_teacher(
    student: nn.Module, teacher: Source, task: Task, config: FinetuneConfig, topology: Topology
) -> None:
    """Make a student's training loss include what it has to learn from the teacher.

    Args:
        student: Of the run, not yet an engine's.
        teacher: Fits it (`read_teacher`).
        task: Of both.
        config: With `distillation`.
        topology: Of the ranks; the teacher is laid over tensor-parallel ranks like the student.
    """
    assert config.distillation is not None
    model = task.build(
        teacher.architecture.model,
        teacher.architecture.labels or (),
        precision=config.precision,
        tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
        recompute="none",
    )
    load_parameters(model, teacher.parameters, topology)
    model.requires_grad_(False).to(topology.device).eval()
    lesson = _Lesson(student, model, config.distillation, config.task.kind)
    changed: Any = student
    changed.forward, changed.loss_weights = lesson.forward, lesson.loss_weights
    changed.target_counts = lesson.target_counts


class _Lesson:
    """Forward, weights and counts of a student with its teacher."""

    def __init__(self, student: Any, teacher: Any, config: DistillationConfig, kind: str) -> None:
        self._student, self._teacher, self._config, self._kind = student, teacher, config, kind
        self._alone: Callable[..., Batch] = student.forward
        self._weights, self._counts = student.loss_weights, student.target_counts
        (self._task_loss,) = self._weights()
        self._hidden: dict[str, list[Tensor]] = {"student": [], "teacher": []}
        if config.hidden_weight:
            for name, model in (("student", student), ("teacher", teacher)):
                for layer in _layers(model):
                    layer.register_forward_hook(self._keeper(self._hidden[name]))

    def loss_weights(self) -> dict[str, float]:
        """The task's loss alone in an evaluation."""
        if not self._student.training:
            weights: dict[str, float] = self._weights()
            return weights
        share = self._config.logits_weight
        found = {self._task_loss: 1.0 - share, "logits_loss": share}
        return found | ({"hidden_loss": self._config.hidden_weight} if self._config.hidden_weight else {})

    def target_counts(self, batch: Batch) -> dict[str, float]:
        """Each loss is a mean over the task's targets; classes' weights count in the task's own only."""
        counts: dict[str, float] = self._counts(batch)
        if self._student.training:
            taught = float(self._targets(batch).sum())
            counts |= {name: taught for name in self.loss_weights() if name != self._task_loss}
            if "hidden_loss" in counts:
                counts["hidden_loss"] = float(self._real(batch).sum())
        return counts

    def forward(self, **batch: Tensor) -> Batch:
        """What the student alone gives, and in training the losses of `loss_weights`."""
        if not self._student.training:
            return self._alone(**batch)
        for kept in self._hidden.values():
            kept.clear()
        with torch.no_grad():
            wanted = self._logits(self._teacher, self._inputs(batch))
        if self._kind == "sft":
            logits = self._logits(self._alone, self._inputs(batch))
            flat = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
            found = {self._task_loss: (flat * batch["loss_mask"].flatten()).sum()}
        else:
            found = self._alone(**batch)
            logits = found["logits"]
        mask = self._targets(batch)
        found["logits_loss"] = distance(logits, wanted, mask, self._config.temperature)
        if self._config.hidden_weight:
            found["hidden_loss"] = self._hidden_loss(self._real(batch))
        return found

    def _logits(self, model: Callable[..., Batch], inputs: Batch) -> Tensor:
        logits = model(**inputs)["logits"]
        if self._kind == "sft":
            logits = whole_logits(logits, self._student.model_config.vocab_size)
        return logits.float()

    def _inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name not in ("labels", "tags", "loss_mask")}

    def _targets(self, batch: Batch) -> Tensor:
        """[B] or [B, S], 1 where the task has a target."""
        if self._kind == "sft":
            return batch["loss_mask"]
        labels = batch["tags" if self._kind == "tagging" else "labels"]
        return (labels != IGNORED_LABEL).float()

    def _real(self, batch: Batch) -> Tensor:
        """[B, S], 1 at tokens whose hidden states are compared."""
        return batch["loss_mask"] if self._kind == "sft" else batch["padding_mask"].float()

    def _keeper(self, kept: list[Tensor]) -> Callable[..., None]:
        def keep(layer: nn.Module, _inputs: Any, output: Any) -> None:
            if not self._student.training:
                return
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(layer, BertLayer):  # it sees no padding
                hidden = layer.attention.core_attention.kept.put(hidden)
            kept.append(hidden)  # [S, B, H]

        return keep

    def _hidden_loss(self, real: Tensor) -> Tensor:
        students, teachers = self._hidden["student"], self._hidden["teacher"]
        total = torch.zeros((), device=real.device)
        for number, mine in enumerate(students, start=1):
            theirs = teachers[round(number * len(teachers) / len(students)) - 1]
            squares = (mine.float() - theirs.float()).square().mean(-1)  # [S, B]
            total = total + (squares * real.t()).sum() / len(students)
        return total


def distance(logits: Tensor, wanted: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """temperature^2 * KL(teacher, student), summed where the mask (logits without classes) says."""
    mine, theirs = (F.log_softmax(values / temperature, -1) for values in (logits, wanted))
    each = F.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)
    return temperature**2 * (each * mask).sum()


def _layers(model: Any) -> Any:
    return (model.encoder if hasattr(model, "encoder") else model.decoder).layers


def _describing(tokenizer: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in tokenizer.items() if name != "config.json"}
