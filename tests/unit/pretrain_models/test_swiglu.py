"""SwiGLU in bf16 on CPU against the formula in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.models.swiglu import SwiGLU
from pretrain.parallel import blocks

ROUNDING = 2.0**-8
"""Distance of two neighbouring bf16 numbers, relative."""


def formula(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("shape", [(5, 3, 8), (7, 2, 40), (1, 2), (0, 4, 16)])
def test_it_is_the_formula_rounded_once(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ELEMENTS", 40)  # several blocks, the last one short
    activation = SwiGLU(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1))
    generator = torch.Generator().manual_seed(1)
    inputs = (3 * torch.randn(shape, generator=generator)).to(torch.bfloat16).requires_grad_()
    ours = activation(inputs)
    weights = torch.randn(ours.shape, generator=generator).to(torch.bfloat16)
    exact = inputs.detach().double().requires_grad_()
    want = formula(exact)
    (mine,) = torch.autograd.grad(ours, inputs, weights)
    (true,) = torch.autograd.grad(want, exact, weights.double())
    torch.testing.assert_close(ours.double(), want, rtol=ROUNDING, atol=1e-6)
    torch.testing.assert_close(mine.double(), true, rtol=ROUNDING, atol=1e-6)
    assert torch.equal(activation(inputs.float()), formula(inputs.float()))


def test_a_gradient_in_another_order_in_memory_is_read_as_it_is() -> None:
    activation = SwiGLU(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1))
    inputs = (
        torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16).requires_grad_()
    )
    weights = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    strided, plain = weights.permute(2, 1, 0), weights.permute(2, 1, 0).contiguous()
    (one,), (other,) = (torch.autograd.grad(activation(inputs), inputs, w) for w in (strided, plain))
    assert torch.equal(one, other)
