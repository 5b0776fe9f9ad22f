"""The section `lora`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pretrain.config.section import PositiveInt, Section


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., 2022): they and the head are trained, all else keeps its weights."""

    rank: PositiveInt = 8
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """An adapter's output is scaled by alpha / rank."""
    targets: list[Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]] = [
        "linear_qkv",
        "linear_proj",
        "linear_fc1",
        "linear_fc2",
    ]
    """Linears of each layer that get one: queries, keys and values; attention output; the MLP's two."""
