"""Reading a checkpoint for conversion or use, loading with transformers, and writing imported weights."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from data_tools.publish import write_json
from finetune.kinds import Architecture, Kind, build
from finetune.lora import lora_of, merged
from finetune.single_rank import single_rank
from finetune.task_config import AnyTask, TaskSection
from pretrain.checkpoint import (
    CheckpointError,
    find_checkpoint,
    parameter_layouts,
    read_config,
    read_parameters,
    write_parameters,
)
from pretrain.checkpoint.manifest import CONFIG, checkpoints_directory, list_checkpoints, step_directory
from pretrain.config.model import ModelConfig, parse_model
from pretrain.config.section import Section

LABELS = "labels.json"
"""In the run directory and checkpoints of a classifier: the label names in the order of their ids."""
BEST = "best"
"""Directory in a run with `selection`, itself like a run: the checkpoint of the best evaluation."""


def find_model(path: Path) -> Path:
    """The verified checkpoint that a run or checkpoint directory stands for.

    Of a run it is the newest good one, but with `selection` the best, as for its results; where a run has a
    best one, what is taken is told on stderr.

    Raises:
        CheckpointError: If there is none, or the one named is damaged.
    """
    kept = list_checkpoints(path / BEST)
    if not kept:
        return find_checkpoint(path)
    if not _selects(path):
        newest = find_checkpoint(path)
        _tell(f"{path} has no selection, {path / BEST} is what an earlier run left: taking {newest}")
        return newest
    try:
        best = find_checkpoint(kept[-1])
    except CheckpointError as error:
        raise CheckpointError(f"{error}; name a directory in {checkpoints_directory(path)}") from error
    _tell(
        f"{path} has a selection: taking its best checkpoint, {best}; name a directory in "
        f"{checkpoints_directory(path)} to take another"
    )
    return best


def _selects(run_dir: Path) -> bool:
    """Whether the config of a run has a selection; one without config (copied, say) may have had one."""
    return not (run_dir / CONFIG).exists() or read_config(run_dir).get("selection") is not None


def _tell(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"headwater: {text}", file=sys.stderr)


def read_architecture(checkpoint: Path) -> Architecture:
    """Architecture and labels of the model in a checkpoint directory.

    Raises:
        CheckpointError: If its config names no model, or a classifier has no label names.
    """
    config = read_config(checkpoint)
    try:
        model = parse_model(config.get("model"))
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


def longest_input(checkpoint: Path, of: Architecture) -> int:
    """Tokens that the model reads at most: what a finetuned BERT was trained with, else its positions."""
    if of.task is None or of.model.kind != "bert":
        return of.model.max_position_embeddings
    return trained_length(read_config(checkpoint), of.model)


def trained_length(config: Mapping[str, Any], model: ModelConfig) -> int:
    """Tokens of the longest sequence of a run, from its saved config; an imported model has its positions."""
    return int((config.get("batch") or {}).get("seq_length", model.max_position_embeddings))


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint, read whole."""

    directory: Path
    architecture: Architecture
    parameters: dict[str, Tensor]


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All parameters of a checkpoint, whole, with adapters merged into them.

    Raises:
        CheckpointError: It is damaged.
    """
    lora, parameters = lora_of(read_config(directory)), read_parameters(directory)
    return parameters if lora is None else merged(parameters, lora)


def read_source(path: Path) -> Source:
    """Read the checkpoint that `find_model` finds.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    directory = find_model(path)
    of, parameters = read_architecture(directory), read_weights(directory)
    outputs = parameters["head.weight"].shape[0] if "head.weight" in parameters else None
    if of.labels is not None and outputs is not None and outputs != len(of.labels):
        raise CheckpointError(
            f"{directory}: {LABELS} names {len(of.labels)} labels, the head has {outputs} outputs; put the "
            f"{LABELS} of the run there"
        )
    return Source(directory, of, parameters)


def load_theirs(kind: Kind, directory: Path) -> tuple[Any, dict[str, list[str]]]:
    """Load a model with transformers, in fp32; no code that comes with it is run, nothing unpickled.

    Returns:
        The model, and what did not fit: {"missing_keys": [...], "unexpected_keys": [...], ...}.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what did not fit is returned, and told by the caller
    model, report = getattr(transformers, kind.hf_class).from_pretrained(
        directory,
        local_files_only=True,
        trust_remote_code=False,
        weights_only=True,
        output_loading_info=True,
        dtype=torch.float32,
    )
    return model, {name: sorted(map(str, keys)) for name, keys in report.items() if keys}


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
        layouts = parameter_layouts(build(of), 1)
    directory = step_directory(run_dir, 0)
    write_parameters(directory, parameters, layouts, config, files)
    return directory
