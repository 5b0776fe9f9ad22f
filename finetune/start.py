"""What a finetuning run starts from: pretrained weights, and a fresh head or that of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from finetune.batches import Examples
from finetune.config import FinetuneConfig
from finetune.kinds import Architecture
from finetune.lora import add_adapters
from finetune.optimizer import freeze
from finetune.rows import listed
from finetune.source import Source, read_weights
from finetune.tasks.task import Task
from pretrain.checkpoint import CheckpointError, load_parameters
from pretrain.config import ConfigError
from pretrain.parallel.rng import seed_initialization
from pretrain.parallel.topology import Topology


@dataclass(frozen=True, slots=True)
class Start:
    """What a run starts from.

    All but the weights of the checkpoint is read when the run begins: a pretraining run that goes on removes
    its older checkpoints.

    Attributes:
        checkpoint: Its directory.
        architecture: Of its model.
        tokenizer: Its files' names and contents.
        teacher: Of a distillation.
    """

    checkpoint: Path
    architecture: Architecture
    tokenizer: Mapping[str, bytes]
    teacher: Source | None


def build_model(
    config: FinetuneConfig,
    start: Start,
    task: Task,
    labels: tuple[str, ...],
    train: Examples,
    topology: Topology,
) -> nn.Module:
    """The model of a run on this rank.

    Args:
        config: With the checkpoint's architecture filled in.
        start: With the checkpoint.
        task: Builds the model.
        labels: Of the training data.
        train: The training data, for class weights.
        topology: Of the ranks.

    Raises:
        CheckpointError: The checkpoint is another model, or not there any more.
    """
    seed_initialization(config.seed)
    model = task.build(
        config.model,  # type: ignore[arg-type]  # with_model has filled it in
        labels,
        train,
        precision=config.precision,
        tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
        recompute=config.training.recompute,
    )
    if not config.from_scratch:
        parameters = _weights(start.checkpoint)
        fresh = fresh_parts(config, start.architecture, parameters)
        load_parameters(model, parameters, topology, allow_missing=fresh)
        if config.lora is not None:
            add_adapters(
                model, config.lora, ("head.", *fresh), config.seed, config.training.recompute == "full"
            )
    freeze(model, config.optimizer)
    return model


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    try:
        return read_weights(checkpoint)
    except (CheckpointError, OSError) as error:
        if checkpoint.exists():
            raise
        raise CheckpointError(
            f"pretrained: {checkpoint} was removed while the data was read, by a run that is still in "
            "training? The same command takes its newest checkpoint; or name one that stays"
        ) from error


def check_head(config: FinetuneConfig, source: Architecture, labels: tuple[str, ...]) -> None:
    """Refuse a checkpoint whose head has other labels than the training data.

    Raises:
        ConfigError: Naming both.
    """
    if not keeps_head(config, source) or source.labels is None or source.labels == labels:
        return
    raise ConfigError(
        f"pretrained: {config.pretrained} is a {config.task.kind} model with {len(source.labels)} labels: "
        f"{listed(source.labels)}; data.train has {len(labels)}: {listed(labels)}. Change the data, or set "
        "new_head: true to start with a fresh head"
    )


def keeps_head(config: FinetuneConfig, source: Architecture) -> bool:
    """Whether the run goes on with the head of the checkpoint: it is a model for the same kind of task."""
    same = source.task is not None and source.task.kind == config.task.kind
    return same and not config.new_head and not config.from_scratch


def fresh_parts(
    config: FinetuneConfig, source: Architecture, parameters: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Prefixes of the parameters that a checkpoint does not give: the head, a pooler that it never had."""
    fresh = () if keeps_head(config, source) else ("head.",)
    return fresh if "encoder.pooler.weight" in parameters else (*fresh, "encoder.pooler.")
