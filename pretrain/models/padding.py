"""Leaving padding out: layers see the real tokens of a micro-batch one behind the other, attention sees rows.

Everything but attention works on each token by itself, so padding there is work for nothing (as in
ByteTransformer, Zhai et al., 2022).

Legend: B micro-batch, S seq_length, T tokens that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Kept:
    """Which tokens of a padded micro-batch the layers see."""

    places: Tensor
    """[T] int64, distinct, in the flattened [S, B]; padding last."""
    shape: tuple[int, int]
    """S, B."""

    @property
    def all(self) -> bool:
        """Whether nothing is left out; then rows stay as they are, whatever the order of the places."""
        return len(self.places) == self.shape[0] * self.shape[1]

    def take(self, padded: Tensor) -> Tensor:
        """[S, B, ...] to [T, 1, ...]."""
        flat = padded.flatten(0, 1)
        kept: Tensor = flat if self.all else _Take.apply(flat, self.places)  # type: ignore[no-untyped-call]
        return kept.unsqueeze(1)

    def put(self, kept: Tensor) -> Tensor:
        """[T, 1, ...] to [S, B, ...], zeros at padding."""
        rows = kept.squeeze(1)
        if not self.all:
            rows = _Put.apply(rows, self.places, self.shape[0] * self.shape[1])  # type: ignore[no-untyped-call]
        return rows.view(*self.shape, *rows.shape[1:])


def keep(padding_mask: Tensor, multiple_of: int) -> Kept:
    """The real tokens of a micro-batch, with padding up to a multiple of a number, for ranks that share them.

    Args:
        padding_mask: [B, S] bool, True = a real token.
        multiple_of: It divides T; it must divide S.
    """
    batch, seq_length = padding_mask.shape
    real = padding_mask.t().reshape(-1)
    wanted = max(1, -(-int(real.sum()) // multiple_of)) * multiple_of
    places = torch.argsort(real.logical_not().byte(), stable=True)[:wanted]
    return Kept(places, (seq_length, batch))


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = len(flat)
        return flat.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _put(gradients[0], ctx.saved_tensors[0], ctx.rows), None


class _Put(torch.autograd.Function):
    """The reverse; torch's own backward of an index_select adds up rows, slowly, for places may repeat."""

    @staticmethod
    def forward(ctx: Any, kept: Tensor, places: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(places)
        return _put(kept, places, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].index_select(0, ctx.saved_tensors[0]), None, None


def _put(kept: Tensor, places: Tensor, rows: int) -> Tensor:
    return kept.new_zeros(rows, *kept.shape[1:]).index_copy_(0, places, kept)
