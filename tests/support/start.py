"""What a rank holds once DeepSpeed's engine has started."""

from __future__ import annotations

from typing import Any
from unittest import mock

from torch import nn

from tests.support.training import Layout, tiny_config


def started(layout: Layout) -> dict[str, Any]:
    """Start an engine: modules that were moved whole, types of the weights, and their elements kept here."""
    from pretrain.models import build_model
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.rng import seed_initialization
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine

    config = tiny_config("gpt", layout, run_dir="unused")
    topology = initialize_topology(layout.tp)
    seed_initialization(config.seed)
    model = build_model(config)
    moved, move = [], nn.Module.to

    def to(module: nn.Module, *arguments: Any, **named: Any) -> nn.Module:
        moved.append(type(module).__name__)
        return move(module, *arguments, **named)

    with mock.patch.object(nn.Module, "to", to):
        engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    weights = list(model.parameters())
    found = {
        "moved": moved,
        "types": {str(weight.dtype) for weight in weights},
        "whole": sum(weight.ds_numel for weight in weights),
        "kept": sum(weight.ds_tensor.numel() for weight in weights),
    }
    engine.close()
    return found
