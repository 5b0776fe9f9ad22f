"""A finetuned checkpoint, ready to answer in this process, from whatever layout it was saved at."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from finetune.kinds import Architecture
from finetune.single_rank import LAYOUT, single_rank
from finetune.source import read_source, trained_length
from finetune.task_config import COLUMNS
from finetune.tasks import open_task
from finetune.tasks.task import Encoder, Task
from finetune.text import open_text_codec
from pretrain.checkpoint import load_parameters, read_config
from pretrain.config import ConfigError
from pretrain.config.load import parse_section

LIBRARIES = ("matplotlib", "scipy", "seqeval", "sklearn")


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A model with its task.

    Attributes:
        checkpoint: Its directory.
        architecture: Model section, task and labels.
        config: What was saved with it.
        task: Reads rows, makes answers of outputs.
        encoder: Its tokenizer, labels and longest sequence.
        model: Whole, in fp32, without dropout.
    """

    checkpoint: Path
    architecture: Architecture
    config: dict[str, Any]
    task: Task
    encoder: Encoder
    model: nn.Module

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels; () for a task without."""
        return self.architecture.labels or ()


@contextmanager
def open_finetuned(path: Path, columns: Sequence[str] = ()) -> Iterator[Finetuned]:
    """Load a checkpoint for as long as the block runs.

    Args:
        path: Run or checkpoint directory.
        columns: "key=name" texts that replace names of columns in its data section.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: A pretraining model, or a column key that the task has not.
    """
    source = read_source(path)
    section = source.architecture.task
    if section is None:
        raise ConfigError(
            f"{source.directory} is a pretraining model; `headwater finetune` makes one that answers"
        )
    config = read_config(source.directory)
    task = open_task(section, _columns(section.kind, config.get("data") or {}, columns))
    model_config = source.architecture.model
    labels = source.architecture.labels or ()
    length = trained_length(config, model_config)
    encoder = Encoder(open_text_codec(source.directory, model_config.vocab_size), length, labels)
    with single_rank() as topology:
        model = task.build(model_config, labels, **LAYOUT)
        load_parameters(model, source.parameters, topology)
        model.to(topology.device).eval()
        yield Finetuned(source.directory, source.architecture, config, task, encoder, model)


def require_libraries() -> None:
    """Refuse at once what would fail at the end, when scores are computed.

    Raises:
        ConfigError: A library of the extra `finetune` is missing.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"scores need the packages {', '.join(missing)}; pip install 'headwater[finetune]' brings them"
        )


def _columns(kind: str, data: dict[str, Any], changes: Sequence[str]) -> Any:
    kept = {name: value for name, value in data.items() if name not in ("train", "validation")}
    for text in changes:
        key, equals, name = text.partition("=")
        if not equals:
            raise ConfigError(f"--column {text!r}: write KEY=NAME, for example --column text=review")
        kept[key.strip()] = int(name) if key.endswith("_column") and name.lstrip("-").isdigit() else name
    return parse_section(COLUMNS[kind], kept, source="the columns")
