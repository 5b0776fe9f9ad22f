"""Our attention on CPU against torch's in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models import cpu_attention
from pretrain.models.cpu_attention import MAX_LENGTH, attend, suits

BATCH, HEADS = 3, 2
ROUNDING = 2.0**-8
"""Distance of two neighbouring bf16 numbers, relative."""


def inputs(seq_length: int, head_size: int) -> Tensor:
    """[S, B, N, 3D] bf16, as the fused projection gives them."""
    generator = torch.Generator().manual_seed(seq_length + head_size)
    fused = torch.randn(seq_length, BATCH, HEADS, 3 * head_size, generator=generator)
    return fused.to(torch.bfloat16).requires_grad_()


def reference(fused: Tensor, causal: bool) -> Tensor:
    """torch's attention in the type of its input; [S, B, N * D]."""
    q, k, v = (x.permute(1, 2, 0, 3) for x in fused.chunk(3, dim=-1))
    context = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return context.permute(2, 0, 1, 3).flatten(2)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("seq_length", "head_size"), [(1, 16), (100, 24), (128, 64), (300, 64), (512, 32)])
def test_it_is_as_exact_as_bf16_allows(
    causal: bool, seq_length: int, head_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cpu_attention, "_SCORES", 4 * min(seq_length, 128) * seq_length
    )  # four heads, then two
    fused = inputs(seq_length, head_size)
    query, key, value = fused.chunk(3, dim=-1)
    ours = attend(query, key, value, causal)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    ours.backward(weights)
    exact = fused.detach().double().requires_grad_()
    want = reference(exact, causal)
    want.backward(weights.double())
    assert fused.grad is not None and exact.grad is not None
    for mine, true in ((ours, want), (fused.grad, exact.grad)):
        assert (mine.double() - true).norm() < ROUNDING * true.norm() + 1e-9


def test_its_gradients_are_no_worse_than_torchs() -> None:
    fused = inputs(256, 64)
    exact = fused.detach().double().requires_grad_()
    weights = torch.randn(256, BATCH, HEADS * 64, generator=torch.Generator().manual_seed(2)).to(
        torch.bfloat16
    )
    (true,) = torch.autograd.grad(reference(exact, causal=True), exact, weights.double())
    query, key, value = fused.chunk(3, dim=-1)
    errors = []
    for out in (attend(query, key, value, causal=True), reference(fused, causal=True)):
        (gradient,) = torch.autograd.grad(out, fused, weights)
        errors.append(float((gradient.double() - true).norm()))
    assert errors[0] <= 1.1 * errors[1]


def test_grouped_queries_share_keys_and_values() -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(100, BATCH, 4, 16, generator=generator).to(torch.bfloat16).requires_grad_()
    key, value = (
        torch.randn(100, BATCH, 2, 16, generator=generator).to(torch.bfloat16).requires_grad_() for _ in "kv"
    )
    assert suits(query, key, None, dropout=0.0)
    q, k, v = exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    context = F.scaled_dot_product_attention(
        *(x.permute(1, 2, 0, 3) for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    want = context.permute(2, 0, 1, 3).flatten(2)
    ours = attend(query, key, value, causal=True)
    weights = torch.randn(ours.shape, generator=generator).to(torch.bfloat16)
    mine = (ours, *torch.autograd.grad(ours, (query, key, value), weights))
    true = (want, *torch.autograd.grad(want, exact, weights.double()))
    for one, other in zip(mine, true, strict=True):
        assert (one.double() - other).norm() < ROUNDING * other.norm()


def test_what_it_does_not_suit_is_left_to_torch() -> None:
    query = torch.zeros(MAX_LENGTH, 1, 4, 8, dtype=torch.bfloat16)
    mask = torch.ones(1, 1, 1, MAX_LENGTH, dtype=torch.bool)
    assert suits(query, query, None, dropout=0.0)
    assert not suits(query, query, None, dropout=0.1)
    assert not suits(query.float(), query.float(), None, dropout=0.0)
    assert not suits(query, query, mask, dropout=0.0)
    longer = torch.zeros(MAX_LENGTH + 1, 1, 4, 8, dtype=torch.bfloat16)
    assert not suits(longer, longer, None, dropout=0.0)
    assert not suits(query[:1], query, None, dropout=0.0)  # generation with a cache


def test_without_gradients_nothing_is_kept() -> None:
    fused = inputs(200, 16)
    query, key, value = fused.chunk(3, dim=-1)
    with_gradients = attend(query, key, value, causal=False)
    kept = with_gradients.grad_fn.saved_tensors[3:]  # type: ignore[union-attr]
    assert sum(x.numel() for x in kept) == BATCH * HEADS * 200 * 200
    with torch.no_grad():
        without = attend(query, key, value, causal=False)
    assert torch.equal(with_gradients, without) and without.grad_fn is None
