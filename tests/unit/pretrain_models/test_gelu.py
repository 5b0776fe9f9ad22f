"""Our GELU against torch's in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.models.gelu import gelu_tanh
from pretrain.parallel import blocks

ROUNDING = 2.0**-8
"""How far a number is from the nearest bf16 number at most, relative."""


@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3, 5), (64,), (100,)])
def test_values_and_derivatives_are_as_exact_as_bf16_allows(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ELEMENTS", 32)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(3).to(torch.bfloat16)
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    inputs.requires_grad_()
    ours = gelu_tanh(inputs)
    ours.backward(weights)
    exact = inputs.detach().double().requires_grad_()
    want = F.gelu(exact, approximate="tanh")
    want.backward(weights.double())
    assert inputs.grad is not None and exact.grad is not None
    torch.testing.assert_close(ours.double(), want, rtol=ROUNDING, atol=1e-6)
    torch.testing.assert_close(inputs.grad.double(), exact.grad, rtol=2.01 * ROUNDING, atol=1e-5)


def test_large_numbers_and_what_is_not_finite_go_the_way_of_torchs() -> None:
    inputs = torch.tensor([-3e38, -1e18, -100, -0.0, 100, 1e18, 3e38, torch.inf, torch.nan])
    made = []
    for function in (gelu_tanh, lambda y: F.gelu(y, approximate="tanh")):
        leaf = inputs.to(torch.bfloat16).requires_grad_()
        outputs = function(leaf)
        outputs.sum().backward()
        assert leaf.grad is not None
        made.append((outputs.detach(), leaf.grad))
    for ours, torchs in zip(*made, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True)


def test_without_gradients_the_values_are_the_same_and_other_types_are_torchs() -> None:
    inputs = torch.linspace(-8, 8, 1001).to(torch.bfloat16)
    with_gradients = gelu_tanh(inputs.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(gelu_tanh(inputs), with_gradients.detach())
    single = inputs.float()
    assert torch.equal(gelu_tanh(single), F.gelu(single, approximate="tanh"))
