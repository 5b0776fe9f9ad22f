"""Adapters of a finetuning run: added to its model, merged into whole parameters, taken apart for peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from finetune.lora_config import LoraConfig
from pretrain.checkpoint import CheckpointError
from pretrain.models.low_rank import FIRST, SECOND, add_low_rank_paths, train_only

ADAPTER_PARTS = (f".{FIRST}", f".{SECOND}")


def add_adapters(
    model: nn.Module, lora: LoraConfig, fresh: tuple[str, ...], seed: int, recompute: bool
) -> None:
    """Add adapters and freeze all else but the parameters that the checkpoint did not give.

    Args:
        model: With its weights.
        lora: Which.
        fresh: Prefixes of the parameters that are trained whole.
        seed: Of the adapters.
        recompute: Whole layers are computed again in the backward pass.
    """
    add_low_rank_paths(model, lora.targets, lora.rank, lora.alpha, seed)
    train_only(model, lambda name: name.endswith(ADAPTER_PARTS) or name.startswith(fresh or ("\0",)))
    if (
        recompute
    ):  # a layer whose input needs no gradient would not be computed again, nor its adapters trained
        modules = dict(model.named_modules())
        embeddings = next(modules[name] for name in ("encoder.embeddings", "embedding") if name in modules)
        embeddings.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())


def lora_of(config: Mapping[str, Any]) -> LoraConfig | None:
    """The section `lora` that was saved with a checkpoint.

    Raises:
        CheckpointError: It is none.
    """
    if config.get("lora") is None:
        return None
    try:
        return LoraConfig.model_validate(config["lora"])
    except ValidationError as error:
        raise CheckpointError(f"a checkpoint's config.yaml has no usable lora section: {error}") from error


@torch.no_grad()
def merged(parameters: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """Whole parameters without adapters: W + (alpha / r) B A in fp32."""
    found = {name: tensor for name, tensor in parameters.items() if not name.endswith(ADAPTER_PARTS)}
    scale = lora.alpha / lora.rank
    for name in adapted(parameters):
        first, second = parameters[f"{name}.{FIRST}"], parameters[f"{name}.{SECOND}"]
        weight = found[f"{name}.weight"]
        found[f"{name}.weight"] = weight + scale * (second.float() @ first.float()).to(weight.dtype)
    return found


def adapted(parameters: Mapping[str, Tensor]) -> list[str]:
    """Names of the linears that have an adapter."""
    return [name.removesuffix(f".{FIRST}") for name in parameters if name.endswith(f".{FIRST}")]
