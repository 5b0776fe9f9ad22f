"""Checkpoints that know no layout: fp32 fragments by parameter name, readable at any TP x DP x ZeRO."""

from pretrain.checkpoint.layout import parameter_layouts
from pretrain.checkpoint.load import (
    load_checkpoint,
    load_parameters,
    read_config,
    read_parameters,
    tokenizer_path,
)
from pretrain.checkpoint.manifest import CheckpointError, find_checkpoint, find_newest
from pretrain.checkpoint.save import save_checkpoint, write_parameters

__all__ = [
    "CheckpointError",
    "find_checkpoint",
    "find_newest",
    "load_checkpoint",
    "load_parameters",
    "parameter_layouts",
    "read_config",
    "read_parameters",
    "save_checkpoint",
    "tokenizer_path",
    "write_parameters",
]
