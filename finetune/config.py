"""The finetuning configuration: one YAML file, one run; shares its job sections with pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pretrain.config import ConfigError, JobConfig
from pretrain.config.load import parse_section, read_yaml
from pretrain.config.model import BertModelConfig, ModelConfig, model_problems
from pretrain.config.section import Rate, Section
from pretrain.config.validate import job_problems


class ClassificationTask(Section):
    """One label for a text; needs a BERT."""

    kind: Literal["classification"]
    dropout: Rate | None = None
    """Before the new head; null takes the model's hidden_dropout."""


class LabelledTextConfig(Section):
    """Labelled texts in JSON lines."""

    train: str
    validation: str
    text: str = "text"
    """Column (JSON key) of the text; longer ones are cut to `batch.seq_length` tokens."""
    label: str = "label"
    """Column of the label: text, whole number or true/false."""


class FinetuneConfig(JobConfig):
    """A complete finetuning run."""

    pretrained: str
    """Run directory (its newest checkpoint) or checkpoint; gives weights, architecture and tokenizer."""
    from_scratch: bool = False
    """Start from random weights instead, everything else equal: what was pretraining worth?"""
    model: BertModelConfig | None = None
    """Taken from the checkpoint; leave it out. The saved config has it, so that it stands alone."""
    task: ClassificationTask
    data: LabelledTextConfig


class ImportedConfig(Section):
    """What is saved with a checkpoint that `headwater import` made."""

    imported_from: str
    """Name of the Hugging Face directory."""
    model: Annotated[ModelConfig, Field(discriminator="kind")]
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
    config = parse_section(FinetuneConfig, read_yaml(path, overrides), source=str(path))
    problems = job_problems(config, world_size)
    if problems:
        raise ConfigError(problems, source=str(path))
    return config


def with_model(config: FinetuneConfig, model: ModelConfig) -> FinetuneConfig:
    """The configuration with the checkpoint's architecture filled in.

    Raises:
        ConfigError: With everything about the architecture that does not fit the run.
    """
    if not isinstance(model, BertModelConfig):
        raise ConfigError(
            f"pretrained: {config.pretrained} is a {model.kind}; task.kind: classification needs a bert"
        )
    problems = []
    if config.model is not None and config.model != model:
        problems.append(f"model: differs from the one in {config.pretrained}; leave the section out")
    if config.batch.seq_length > model.max_position_embeddings:
        problems.append(
            f"batch.seq_length: {config.batch.seq_length} is longer than the "
            f"{model.max_position_embeddings} positions of {config.pretrained}"
        )
    if config.batch.seq_length < 3:
        problems.append(
            f"batch.seq_length: {config.batch.seq_length} leaves no room for text between [CLS] and [SEP]"
        )
    tp = config.parallel.tensor_model_parallel_size
    problems += model_problems(model, tp)
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update={"model": model})
