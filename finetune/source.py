"""What a checkpoint holds: architecture, labels, weights; and the kinds of model that convert."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from data_tools.publish import write_json
from finetune import hf_config
from finetune.single_rank import LAYOUT, single_rank
from finetune.task_config import AnyTask, ClassificationTask, TaskSection
from finetune.tasks.models import BertForSequence
from finetune.weights import Link, bert_classification_links, bert_pretraining_links, gpt_links
from pretrain.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_parameters,
    parameter_layouts,
    read_config,
    read_parameters,
    write_parameters,
)
from pretrain.checkpoint.manifest import list_checkpoints, step_directory
from pretrain.config import ConfigError
from pretrain.config.model import BertModelConfig, GPTModelConfig
from pretrain.config.section import Section
from pretrain.models.bert import BertForPreTraining
from pretrain.models.gpt import GPT

LABELS = "labels.json"
"""In the run directory and checkpoints of a classifier: the label names in the order of their ids."""

ModelConfig = GPTModelConfig | BertModelConfig


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a checkpoint's model is.

    Attributes:
        model: The model section.
        labels: Names of a classifier's labels; None for a model without them.
        task: What a finetuned model is for; None for a pretraining model.
    """

    model: ModelConfig
    labels: tuple[str, ...] | None = None
    task: TaskSection | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """One of our models and its counterpart in transformers."""

    hf_class: str
    links: Callable[[Any], list[Link]]
    build: Callable[[Architecture], nn.Module]
    """Our model, whole, in fp32."""
    hf_config: Callable[[Architecture], Any]


def _build_classifier(of: Architecture) -> nn.Module:
    return BertForSequence(_bert(of), len(of.labels or ()), **LAYOUT)


GPT_LM = Kind(
    "GPT2LMHeadModel",
    gpt_links,
    lambda of: GPT(_gpt(of), **LAYOUT),
    lambda of: hf_config.gpt2_config(_gpt(of)),
)
BERT_PRETRAINING = Kind(
    "BertForPreTraining",
    bert_pretraining_links,
    lambda of: BertForPreTraining(_bert(of), **LAYOUT),
    lambda of: hf_config.bert_config(_bert(of)),
)
BERT_CLASSIFIER = Kind(
    "BertForSequenceClassification",
    bert_classification_links,
    _build_classifier,
    lambda of: hf_config.bert_config(_bert(of), list(of.labels or ())),
)


def kind_of(of: Architecture) -> Kind:
    """The kind of an architecture."""
    if of.model.kind == "gpt":
        return GPT_LM
    if of.task is not None and not isinstance(of.task, ClassificationTask):
        raise ConfigError(f"a model for task.kind: {of.task.kind} cannot be exported yet")
    return BERT_PRETRAINING if of.labels is None else BERT_CLASSIFIER


def read_architecture(checkpoint: Path) -> Architecture:
    """Architecture and labels of the model in a checkpoint directory.

    Raises:
        CheckpointError: If its config names no model, or a classifier has no label names.
    """
    config = read_config(checkpoint)
    try:
        model: ModelConfig = TypeAdapter(ModelConfig).validate_python(config.get("model"))
    except ValidationError as error:
        raise CheckpointError(
            f"{checkpoint}: its config.yaml has no usable model section: {error}"
        ) from error
    if config.get("task") is None:
        return Architecture(model)
    try:
        task: TaskSection = TypeAdapter[TaskSection](AnyTask).validate_python(config["task"])
    except ValidationError as error:
        raise CheckpointError(f"{checkpoint}: its config.yaml has no usable task section: {error}") from error
    labels = checkpoint / LABELS
    if not task.has_labels:
        return Architecture(model, task=task)
    if not labels.is_file():
        raise CheckpointError(f"{checkpoint}: a model with labels, but no {LABELS}")
    return Architecture(model, tuple(json.loads(labels.read_text(encoding="utf-8"))), task)


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint, read whole."""

    directory: Path
    architecture: Architecture
    parameters: dict[str, Tensor]


def read_source(path: Path) -> Source:
    """Read the newest checkpoint of a run, or the checkpoint that `path` itself is.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    directory = find_checkpoint(path)
    return Source(directory, read_architecture(directory), read_parameters(directory))


def load_theirs(kind: Kind, directory: Path) -> tuple[Any, dict[str, list[str]]]:
    """Load a model with transformers, in fp32.

    Returns:
        The model, and what did not fit: {"missing_keys": [...], "unexpected_keys": [...], ...}.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what did not fit is returned, and told by the caller
    model, report = getattr(transformers, kind.hf_class).from_pretrained(
        directory, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    return model, {name: sorted(map(str, keys)) for name, keys in report.items() if keys}


def difference_from(theirs: Any, of: Architecture, parameters: Mapping[str, Tensor]) -> float:
    """Build our model from whole parameters and compare its logits with those of a transformers model."""
    with single_rank() as topology:
        ours = kind_of(of).build(of)
        load_parameters(ours, parameters, topology)
        return largest_difference(ours, theirs, of)


def write_weights(
    run_dir: Path,
    of: Architecture,
    parameters: Mapping[str, Tensor],
    config: Section,
    files: Mapping[str, Path],
) -> Path:
    """Write whole parameters as the checkpoint of step 0 of a run; returns its directory.

    Args:
        run_dir: A run without checkpoints.
        of: What the parameters are.
        parameters: By our names.
        config: With `model` (and `task`), as `read_architecture` expects it.
        files: Name in the checkpoint -> file to copy.

    Raises:
        CheckpointError: If the run has checkpoints.
    """
    if list_checkpoints(run_dir):
        raise CheckpointError(f"{run_dir} has checkpoints already; choose another --out")
    if of.labels is not None:
        write_json(run_dir / LABELS, list(of.labels))
        files = {**files, LABELS: run_dir / LABELS}
    with single_rank():
        layouts = parameter_layouts(kind_of(of).build(of), 1)
    directory = step_directory(run_dir, 0)
    write_parameters(directory, parameters, layouts, config, files)
    return directory


@torch.no_grad()
def largest_difference(ours: nn.Module, theirs: Any, of: Architecture) -> float:
    """Largest absolute difference between the logits of two models on a fixed batch of random tokens.

    Args:
        ours: One of our models, whole.
        theirs: Its counterpart in transformers.
        of: What both are.
    """
    ours.eval()
    theirs.eval()
    vocab_size = of.model.vocab_size
    length = min(of.model.max_position_embeddings, 64)
    tokens = torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    if of.model.kind == "gpt":
        return _difference([ours(tokens)["logits"][..., :vocab_size]], [theirs(input_ids=tokens).logits])
    positions = torch.arange(length).expand_as(tokens)
    real = positions < torch.tensor([[length], [max(1, length * 2 // 3)]])  # the second row is padded
    types = (positions >= length // 2).long()
    mine = ours(tokens, types, real)
    out = theirs(input_ids=tokens, token_type_ids=types, attention_mask=real.long())
    if of.labels is not None:
        return _difference([mine["logits"]], [out.logits])
    expected = [out.prediction_logits[real], out.seq_relationship_logits]
    return _difference([mine["logits"][..., :vocab_size][real], mine["nsp_logits"]], expected)


def _difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(ours, theirs, strict=True))


def _gpt(of: Architecture) -> GPTModelConfig:
    if not isinstance(of.model, GPTModelConfig):
        raise ConfigError(f"model.kind: {of.model.kind} where a gpt is needed")
    return of.model


def _bert(of: Architecture) -> BertModelConfig:
    if not isinstance(of.model, BertModelConfig):
        raise ConfigError(f"model.kind: {of.model.kind} where a bert is needed")
    return of.model
