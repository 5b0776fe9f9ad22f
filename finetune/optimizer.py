"""AdamW for pretrained weights: slower lower layers, frozen layers, a fresh head at the full rate."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from finetune.config import FinetuneOptimizerConfig

_LAYER = re.compile(r"(?:encoder|decoder)\.layers\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:encoder\.embeddings|embedding)\.")


def depth_of(name: str, num_layers: int) -> int:
    """Where a parameter stands: 0 embeddings, 1 to num_layers the layers, num_layers + 1 what is above."""
    if _EMBEDDING.match(name):
        return 0
    layer = _LAYER.match(name)
    return int(layer[1]) + 1 if layer else num_layers + 1


def build_finetune_optimizer(
    model: nn.Module, config: FinetuneOptimizerConfig, num_layers: int
) -> torch.optim.AdamW:
    """AdamW with one group per depth and kind of parameter.

    Each group has `lr_scale`, which the engine multiplies the learning rate by: layer_lr_decay to the power
    of the layers above (ELECTRA's rule), 0 for frozen ones. Frozen layers stay in the optimizer; `freeze`
    keeps gradients from them.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # beside adapters; it has no state
            continue
        groups[depth_of(name, num_layers), _ndim(parameter) >= 2].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decayed and not is_frozen(depth, config) else 0.0,
                "lr_scale": (
                    0.0 if is_frozen(depth, config) else config.layer_lr_decay ** (num_layers + 1 - depth)
                ),
            }
            for (depth, decayed), parameters in sorted(groups.items(), reverse=True)
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def is_frozen(depth: int, config: FinetuneOptimizerConfig) -> bool:
    """Whether parameters of a depth keep their weights."""
    return config.frozen_layers is not None and depth <= config.frozen_layers


def freeze(model: nn.Module, config: FinetuneOptimizerConfig) -> None:
    """Cut the gradient above the frozen part, so that neither time nor the gradient norm is spent on it."""
    if config.frozen_layers is None:
        return
    depth = config.frozen_layers
    modules = dict(model.named_modules())
    prefix = next(name for name in ("encoder", "decoder") if f"{name}.layers" in modules)
    names = ("encoder.embeddings", "embedding") if depth == 0 else (f"{prefix}.layers.{depth - 1}",)
    top = next(modules[name] for name in names if name in modules)
    top.register_forward_hook(lambda _module, _inputs, output: _detached(output))


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    return tuple(_detached(part) for part in output) if isinstance(output, tuple) else output


def _ndim(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))
