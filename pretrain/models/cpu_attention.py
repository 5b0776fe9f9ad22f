"""Attention over short sequences in bf16 on CPU: there torch's fused kernel takes twice as long or more.

As in torch's kernel, scores, softmax and sums of products are fp32 and probabilities are rounded to bf16
before they meet the values. The probabilities are kept for the backward pass, so memory grows with the square
of the sequence; hence `MAX_LENGTH`. benchmarks/LOG.md has the figures.

Legend: S seq_length, B micro-batch, N heads and G query groups of this rank, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.parallel.blocks import bf16_on_cpu

MAX_LENGTH = 1024
"""Sequences that are longer take torch's kernel: faster there, and its memory grows with the length only."""
_ROWS = 128
"""Queries at a time; a causal block leaves out the keys behind its last query."""
_SCORES = 2**21
"""Scores at a time, 8 MB in fp32: they stay in the cache."""


def suits(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether `attend` may be called; masks are left to torch."""
    return (
        bf16_on_cpu(query)
        and query.shape[0] == key.shape[0] <= MAX_LENGTH
        and mask is None
        and dropout == 0.0
    )


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V.

    Args:
        query: [S, B, N, D].
        key: [S, B, G, D]; N / G neighbouring queries share one key and value.
        value: [S, B, G, D].
        causal: Whether a query sees no key behind its own place.

    Returns:
        [S, B, N * D].
    """
    shared_by = query.shape[2] // key.shape[2]
    if shared_by > 1:
        key, value = (x.repeat_interleave(shared_by, dim=2) for x in (key, value))
    out: Tensor = _Attention.apply(query, key, value, causal, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, causal: bool, with_gradients: bool
    ) -> Tensor:
        seq_length, size = query.shape[0], query.shape[-1]
        q, k, v = (_by_head(x) for x in (query, key, value))
        out, kept = torch.empty_like(q), []
        behind = torch.full((_ROWS, _ROWS), -torch.inf).triu_(1)
        scaled_q, k_fp32 = q.float().mul_(1 / math.sqrt(size)), k.float()
        for some, rows, keys in _blocks(len(q), seq_length, causal):
            scores = torch.bmm(scaled_q[some, rows], k_fp32[some, keys].transpose(1, 2))
            if causal:
                height = rows.stop - rows.start
                scores[..., rows.start :] += behind[:height, :height]
            probabilities = torch.softmax(scores, dim=-1, out=scores).to(q.dtype)
            out[some, rows] = torch.bmm(probabilities, v[some, keys])
            if with_gradients:
                kept.append(probabilities)
        ctx.causal, ctx.shape = causal, query.shape
        ctx.save_for_backward(q, k, v, *kept)
        return _by_place(out, query.shape).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        seq_length, size = ctx.shape[0], ctx.shape[-1]
        out_gradient = _by_head(gradients[0].view(ctx.shape))
        q_gradient = torch.empty_like(q)
        k_gradient, v_gradient = (torch.zeros(k.shape) for _ in range(2))  # fp32: sums over blocks
        for probabilities, block in zip(kept, _blocks(len(q), seq_length, ctx.causal), strict=True):
            some, rows, keys = block
            g = out_gradient[some, rows]
            v_gradient[some, keys] += torch.bmm(probabilities.transpose(1, 2), g)
            p_gradient = torch.bmm(g, v[some, keys].transpose(1, 2))
            s_gradient = torch.ops.aten._softmax_backward_data(p_gradient, probabilities, -1, q.dtype)
            q_gradient[some, rows] = torch.bmm(s_gradient, k[some, keys])
            k_gradient[some, keys] += torch.bmm(s_gradient.transpose(1, 2), q[some, rows])
        scale = 1 / math.sqrt(size)
        made = (q_gradient.mul_(scale), k_gradient.mul_(scale), v_gradient)
        return (*(_by_place(x.to(q.dtype), ctx.shape) for x in made), None, None)


def _by_head(x: Tensor) -> Tensor:
    """[S, B, N, D] to [B * N, S, D]."""
    return x.permute(1, 2, 0, 3).flatten(0, 1).contiguous()


def _by_place(x: Tensor, shape: torch.Size) -> Tensor:
    """[B * N, S, D] to [S, B, N, D]."""
    return x.view(shape[1], shape[2], shape[0], shape[3]).permute(2, 0, 1, 3).contiguous()


def _blocks(heads: int, seq_length: int, causal: bool) -> Iterator[tuple[slice, slice, slice]]:
    """Heads, queries and keys that are computed together."""
    rows = min(_ROWS, seq_length) if causal else seq_length
    height = max(1, _SCORES // (rows * seq_length))
    for head in range(0, heads, height):
        for row in range(0, seq_length, rows):
            end = min(row + rows, seq_length)
            yield slice(head, head + height), slice(row, end), slice(0, end if causal else seq_length)
