"""SwiGLU (Shazeer, 2020): silu(gate) x up."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.parallel.blocks import bf16_on_cpu, row_blocks


class SwiGLU(nn.Module):
    """The activation between megatron-core's two linears of an MLP, the first of which gives gate and up."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, both: Tensor) -> Tensor:
        """[..., 2F] to [..., F]."""
        if bf16_on_cpu(both):
            result: Tensor = _Swiglu.apply(both)  # type: ignore[no-untyped-call]
            return result
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up


class _Swiglu(torch.autograd.Function):
    """Computed in fp32 and rounded once; keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        both, width = both.contiguous(), both.shape[-1] // 2
        outputs = both.new_empty(*both.shape[:-1], width)
        rows_of_input, rows_of_output = both.view(-1, 2 * width), outputs.view(-1, width)
        for rows, (gate, up) in row_blocks(len(rows_of_input), width, copies=2):
            gate.copy_(rows_of_input[rows, :width])
            up.copy_(rows_of_input[rows, width:])
            rows_of_output[rows] = F.silu(gate, inplace=True).mul_(up)
        ctx.save_for_backward(both)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        width = both.shape[-1] // 2
        made = torch.empty_like(both)
        rows_of_input, rows_of_gradient = both.view(-1, 2 * width), gradients[0].reshape(-1, width)
        rows_made = made.view(-1, 2 * width)
        for rows, (gate, up, gradient, silu) in row_blocks(len(rows_of_input), width, copies=4):
            gate.copy_(rows_of_input[rows, :width])
            up.copy_(rows_of_input[rows, width:])
            gradient.copy_(rows_of_gradient[rows])
            torch.ops.aten.silu(gate, out=silu)
            rows_made[rows, width:] = silu.mul_(gradient)
            torch.ops.aten.silu_backward(gradient.mul_(up), gate, grad_input=silu)
            rows_made[rows, :width] = silu
        return made
