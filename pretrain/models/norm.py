"""Normalisation on torch's kernels, ready for sequence parallelism, which megatron-core's own refuses."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm (Ba et al., 2016) of [S, B, H] activations, as megatron-core builds its norms."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_megatron: Any
    ) -> None:
        super().__init__(hidden_size, eps)
        mark_sequence_parallel(self, config)


class RMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang & Sennrich, 2019): no mean, no bias."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_megatron: Any
    ) -> None:
        super().__init__(hidden_size, eps)
        mark_sequence_parallel(self, config)


NORMS: dict[str, type[nn.Module]] = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}
"""By `TransformerConfig.normalization`."""


def norm_class(config: TransformerConfig) -> type[nn.Module]:
    """The norm of a model; built with (config, hidden_size, eps)."""
    return NORMS[config.normalization]


def mark_sequence_parallel(module: nn.Module, config: TransformerConfig) -> None:
    """Mark parameters that see only this rank's part of the sequence: their gradients are partial sums.

    The same attribute that megatron-core's fused norms and row-parallel biases carry; whoever reduces
    gradients adds the marked ones up over the tensor-parallel ranks.
    """
    for parameter in module.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
