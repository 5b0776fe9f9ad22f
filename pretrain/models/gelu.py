"""The GELU of GPT-2, in its tanh form (Hendrycks & Gimpel, 2016), slow in torch in bf16 on CPU.

As tanh(u) = 2 sigmoid(2u) - 1, it is y sigmoid(w) with w = 2 sqrt(2/pi) (y + 0.044715 y^3), and a sigmoid
takes a third of a tanh's time. benchmarks/LOG.md has the figures.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.parallel import blocks

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715


def gelu_tanh(y: Tensor) -> Tensor:
    """GELU of any shape; torch's own but for bf16 on CPU."""
    if not blocks.bf16_on_cpu(y):
        return F.gelu(y, approximate="tanh")
    result: Tensor = _Gelu.apply(y, torch.is_grad_enabled() and y.requires_grad)  # type: ignore[no-untyped-call]
    return result


class _Gelu(torch.autograd.Function):
    """Computed in fp32; keeps the derivative in bf16 where torch keeps the input."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, with_gradient: bool) -> Tensor:
        inputs = whole.reshape(-1, 1)
        outputs = torch.empty_like(inputs)
        derivative = torch.empty_like(inputs) if with_gradient else None
        linear = torch.full((min(blocks.ELEMENTS, len(inputs)), 1), _LINEAR, dtype=torch.float32)
        for here, (y, sigmoid, slope, w_slope) in blocks.row_blocks(len(inputs), 1, copies=4):
            constant = linear[: len(y)]
            y.copy_(inputs[here])
            torch.addcmul(constant, y, y, value=_CUBIC, out=sigmoid).mul_(y).sigmoid_()
            if derivative is not None:  # sigmoid(w) + y sigmoid'(w) w'
                torch.ops.aten.sigmoid_backward(y, sigmoid, grad_input=slope)
                torch.addcmul(constant, y, y, value=3 * _CUBIC, out=w_slope)
                derivative[here] = torch.addcmul(sigmoid, slope, w_slope, out=slope)
            outputs[here] = y.mul_(sigmoid)
        ctx.save_for_backward(derivative)
        return outputs.view(whole.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (derivative,) = ctx.saved_tensors
        return gradients[0] * derivative.view(gradients[0].shape), None
