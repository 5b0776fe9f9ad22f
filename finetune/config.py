"""The finetuning configuration: one YAML file, one run; shares its job sections with pretraining.

`task.kind` chooses the task; it decides which keys the sections `task` and `data` have. Imports neither torch
nor numpy: `headwater launch` and `check` read it on login nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.distillation_config import TASKS as TASKS_WITH_TEACHER
from finetune.distillation_config import DistillationConfig
from finetune.lora_config import LoraConfig
from finetune.task_config import (
    ChoiceData,
    ClassificationTask,
    DataSection,
    MultiLabelData,
    MultiLabelTask,
    MultipleChoiceTask,
    QuestionAnsweringTask,
    QuestionData,
    RegressionTask,
    ResponseData,
    SftTask,
    TaggedData,
    TaggingTask,
    TaskSection,
    TextData,
)
from pretrain.config import ConfigError, JobConfig
from pretrain.config.load import parse_section, read_yaml
from pretrain.config.model import ModelConfig, model_problems
from pretrain.config.schema import OptimizerConfig
from pretrain.config.section import NonNegativeInt, PositiveInt, Section
from pretrain.config.validate import job_problems

AnyModel = Annotated[ModelConfig, Field(discriminator="kind")]

MODEL_KIND: dict[str, Literal["bert", "gpt"]] = {"sft": "gpt"}
"""Which kind of model a task needs, where it is not a bert."""


class FinetuneOptimizerConfig(OptimizerConfig):
    """AdamW with what only pretrained weights ask for."""

    layer_lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Each layer learns this factor slower than the one above it, the embeddings slowest (Howard & Ruder,
    2018; Clark et al., 2020 use 0.8 to 0.9); the new head has the full rate."""
    frozen_layers: NonNegativeInt | None = None
    """The embeddings and this many of the lowest layers keep their weights; null trains everything."""


class SelectionConfig(Section):
    """Which checkpoint is the result of the run: the best evaluation instead of the last step."""

    metric: str
    """A score of the task's evaluations, or `loss`."""
    patience: PositiveInt | None = None
    """End the run after so many evaluations without a better one; null trains all `train_steps`."""


class FinetuneConfig(JobConfig):
    """A complete finetuning run; the classes below say which task."""

    pretrained: str
    """Run directory (its newest checkpoint, with `selection` its best) or checkpoint; gives weights,
    architecture and tokenizer."""
    from_scratch: bool = False
    """Start from random weights instead, everything else equal: what was pretraining worth?"""
    new_head: bool = False
    """Start with a fresh head where the checkpoint is already one for this kind of task."""
    model: AnyModel | None = None
    """Taken from the checkpoint; leave it out. The saved config has it, so that it stands alone. With
    from_scratch it may be another one for the same vocabulary, such as a smaller student."""
    optimizer: FinetuneOptimizerConfig
    lora: LoraConfig | None = None
    """null trains all weights."""
    distillation: DistillationConfig | None = None
    """null learns from the data alone."""
    selection: SelectionConfig | None = None
    """null keeps the last step as the result."""
    task: TaskSection
    data: DataSection


class ClassificationConfig(FinetuneConfig):
    """See ClassificationTask."""

    task: ClassificationTask
    data: TextData


class MultiLabelConfig(FinetuneConfig):
    """See MultiLabelTask."""

    task: MultiLabelTask
    data: MultiLabelData


class RegressionConfig(FinetuneConfig):
    """See RegressionTask."""

    task: RegressionTask
    data: TextData


class MultipleChoiceConfig(FinetuneConfig):
    """See MultipleChoiceTask."""

    task: MultipleChoiceTask
    data: ChoiceData


class TaggingConfig(FinetuneConfig):
    """See TaggingTask."""

    task: TaggingTask
    data: TaggedData


class QuestionAnsweringConfig(FinetuneConfig):
    """See QuestionAnsweringTask."""

    task: QuestionAnsweringTask
    data: QuestionData


class SftConfig(FinetuneConfig):
    """See SftTask."""

    task: SftTask
    data: ResponseData


CONFIGS: Mapping[str, type[FinetuneConfig]] = {
    "classification": ClassificationConfig,
    "multi_label": MultiLabelConfig,
    "regression": RegressionConfig,
    "multiple_choice": MultipleChoiceConfig,
    "tagging": TaggingConfig,
    "question_answering": QuestionAnsweringConfig,
    "sft": SftConfig,
}
"""By task.kind."""


class ImportedConfig(Section):
    """What is saved with a checkpoint that `headwater import` made."""

    imported_from: str
    """Name of the Hugging Face directory."""
    model: AnyModel
    task: ClassificationTask | None = None


def load_finetune_config(
    path: Path, overrides: Sequence[str] = (), world_size: int | None = None
) -> FinetuneConfig:
    """Read, override and validate a finetuning configuration; the checkpoint is not looked at yet.

    Args:
        path: The YAML file.
        overrides: `section.key=value` texts.
        world_size: Number of ranks, where known.

    Raises:
        ConfigError: With every problem found.
    """
    data = read_yaml(path, overrides)
    config = parse_section(config_class(data, str(path)), data, source=str(path))
    problems = job_problems(config, world_size) + _selection_problems(config)
    problems += _distillation_problems(config)
    if config.lora is not None and config.optimizer.frozen_layers is not None:
        problems.append("optimizer.frozen_layers: with lora all layers keep their weights; leave it out")
    if config.lora is not None and config.from_scratch:
        problems.append("lora: adapters of random weights learn nothing; set from_scratch: false")
    if isinstance(config, SftConfig):
        problems += _chat_problems(config)
    if config.parallel.sequence_parallel:
        problems.append(
            "parallel.sequence_parallel: is for pretraining; a batch here is as long as its longest row"
        )
    if problems:
        raise ConfigError(problems, source=str(path))
    return config


def config_class(data: Mapping[str, Any], source: str) -> type[FinetuneConfig]:
    """The class of a configuration, by its task.kind.

    Raises:
        ConfigError: No task, or one that is not known.
    """
    task = data.get("task")
    kind = task.get("kind") if isinstance(task, dict) else None
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise ConfigError(f"task.kind: must be one of {', '.join(CONFIGS)} (got {kind!r})", source=source)
    return CONFIGS[kind]


def with_model(config: FinetuneConfig, model: ModelConfig) -> FinetuneConfig:
    """The configuration with the checkpoint's architecture filled in.

    Raises:
        ConfigError: With everything about the architecture that does not fit the run.
    """
    needed = MODEL_KIND.get(config.task.kind, "bert")
    if model.kind != needed:
        raise ConfigError(
            f"pretrained: {config.pretrained} is a {model.kind}; task.kind: {config.task.kind} needs a "
            f"{needed}"
        )
    problems = []
    own = config.model
    if (
        own is not None
        and config.from_scratch
        and (own.kind, own.vocab_size) == (model.kind, model.vocab_size)
    ):
        model = own
    elif own is not None and own != model:
        problems.append(f"model: differs from the one in {config.pretrained}; leave the section out")
    if config.batch.seq_length > model.max_position_embeddings:
        problems.append(
            f"batch.seq_length: {config.batch.seq_length} is longer than the "
            f"{model.max_position_embeddings} positions of {config.pretrained}"
        )
    problems += config.task.length_problems(config.batch.seq_length)
    frozen = config.optimizer.frozen_layers
    if frozen is not None and frozen > model.num_layers:
        problems.append(f"optimizer.frozen_layers: {frozen} of a model with {model.num_layers} layers")
    tp = config.parallel.tensor_model_parallel_size
    problems += model_problems(model, tp)
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update={"model": model})


def _distillation_problems(config: FinetuneConfig) -> list[str]:
    if config.distillation is None:
        return []
    problems = []
    if config.task.kind not in TASKS_WITH_TEACHER:
        problems.append(
            f"distillation: not for task.kind: {config.task.kind}, only {', '.join(TASKS_WITH_TEACHER)}"
        )
    if config.distillation.hidden_weight and config.training.recompute == "full":
        problems.append("distillation.hidden_weight: cannot be combined with training.recompute: full")
    return problems


def _chat_problems(config: SftConfig) -> list[str]:
    if (config.task.chat_template is None) != (config.data.messages is None):
        return ["task.chat_template and data.messages belong together; give both or neither"]
    if (
        config.task.chat_template is not None
        and config.task.template != SftTask.model_fields["template"].default
    ):
        return ["task.template is for data.prompt; with data.messages task.chat_template writes the prompt"]
    return []


def _selection_problems(config: FinetuneConfig) -> list[str]:
    problems = []
    if config.optimizer.frozen_layers is not None and config.training.recompute != "none":
        problems.append(
            "optimizer.frozen_layers: cannot be combined with training.recompute: full; frozen layers keep "
            "no activations anyway"
        )
    if config.selection is None:
        return problems
    if config.selection.metric not in ("loss", *config.task.scores):
        problems.append(
            f"selection.metric: {config.selection.metric!r} is no score of task.kind: {config.task.kind}, "
            f"which has loss, {', '.join(config.task.scores)}"
        )
    if not config.training.eval_interval:
        problems.append("selection: needs evaluations; set training.eval_interval")
    return problems
