"""Normalisation on torch's kernels, ready for sequence parallelism, which megatron-core's own refuses."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.parallel.blocks import bf16_on_cpu, row_blocks


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

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] to [..., H]; torch's own but for bf16 on CPU, where that is a chain of passes."""
        if not bf16_on_cpu(x):
            return super().forward(x)
        result: Tensor = _RmsNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return result


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) x weight, computed in fp32 and rounded once; keeps its input and 1 / rms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inputs = x.reshape(-1, x.shape[-1])
        outputs, scales = torch.empty_like(inputs), torch.empty(len(inputs), 1, dtype=torch.float32)
        for rows, (block,) in row_blocks(len(inputs), inputs.shape[1], copies=1):
            block.copy_(inputs[rows])
            norms = torch.linalg.vector_norm(block, dim=1, keepdim=True)
            torch.rsqrt(norms.square_().div_(block.shape[1]).add_(eps), out=scales[rows])
            outputs[rows] = block.mul_(scales[rows]).mul_(weight)
        ctx.save_for_backward(inputs, weight, scales)
        return outputs.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        inputs, weight, scales = ctx.saved_tensors
        out_gradient = gradients[0].reshape(inputs.shape)
        made, trained = torch.empty_like(inputs), ctx.needs_input_grad[1]
        weight_gradient = torch.zeros(weight.shape, dtype=torch.float32) if trained else None
        for rows, (normed, gradient, product) in row_blocks(len(inputs), inputs.shape[1], copies=3):
            normed.copy_(inputs[rows]).mul_(scales[rows])
            gradient.copy_(out_gradient[rows])
            if weight_gradient is not None:
                weight_gradient += torch.mul(gradient, normed, out=product).sum(0)
            gradient.mul_(weight)
            shares = torch.mul(gradient, normed, out=product).mean(1, keepdim=True)
            made[rows] = gradient.sub_(normed.mul_(shares)).mul_(scales[rows])
        found = None if weight_gradient is None else weight_gradient.to(weight.dtype)
        return made.view(gradients[0].shape), found, None


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
