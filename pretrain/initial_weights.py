"""Continued pretraining: a run that starts from the weights of another run's checkpoint, on other data."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from torch import nn

from pretrain.checkpoint import find_checkpoint, load_parameters, read_config, read_parameters, tokenizer_path
from pretrain.checkpoint.manifest import CheckpointError, list_checkpoints, wanted_by
from pretrain.config import ConfigError, RunConfig
from pretrain.config.model import parse_model
from pretrain.parallel.topology import Topology

FREE = ("hidden_dropout", "attention_dropout", "init_std", "nsp_weight")
"""Keys of the model section that no weight depends on."""


def load_initial_weights(config: RunConfig, model: nn.Module, topology: Topology, tokenizer: Path) -> None:
    """Give a fresh model the weights of `initial_weights`; a run that has checkpoints goes on from those.

    Args:
        config: Of the run.
        model: Built, not yet an engine's.
        topology: Of the ranks; the checkpoint may be of any layout.
        tokenizer: File of the run's own tokenizer.

    Raises:
        CheckpointError: No usable checkpoint, or not one of a pretraining model.
        ConfigError: It is another model, or has another tokenizer.
    """
    if config.initial_weights is None or list_checkpoints(Path(config.run_dir)):
        return
    with wanted_by("initial_weights"):
        directory = find_checkpoint(Path(config.initial_weights))
    _require_same_model(config, directory)
    theirs = tokenizer_path(directory)
    if theirs.read_bytes() != tokenizer.read_bytes():
        raise ConfigError(
            f"initial_weights: the model in {directory} reads another tokenizer than {tokenizer}; prepare "
            f"the corpus with `headwater data prepare --tokenizer {theirs}`"
        )
    load_parameters(model, read_parameters(directory), topology)
    if topology.is_main:
        print(f"initial weights from {directory}", flush=True)


def _require_same_model(config: RunConfig, directory: Path) -> None:
    try:
        saved = parse_model(read_config(directory).get("model")).model_dump()
    except ValidationError as error:
        raise CheckpointError(f"{directory}: its config.yaml has no usable model section: {error}") from error
    ours = config.model.model_dump()
    differing = [
        f"model.{key} (there {saved.get(key)!r}, here {ours.get(key)!r})"
        for key in sorted(saved.keys() | ours.keys())
        if key not in FREE and saved.get(key) != ours.get(key)
    ]
    if differing:
        raise ConfigError(f"initial_weights: {directory} is another model: {', '.join(differing)}")
