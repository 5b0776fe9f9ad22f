"""Checkpoints that know no layout: fp32 fragments by parameter name, readable at any TP x DP x ZeRO.

Names are loaded when they are asked for: listing and verifying checkpoints needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_MODULES = {
    "layout": ("parameter_layouts",),
    "load": ("load_checkpoint", "load_parameters", "read_config", "read_parameters", "tokenizer_path"),
    "manifest": ("CheckpointError", "find_checkpoint", "find_newest"),
    "save": ("save_checkpoint", "write_parameters"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
