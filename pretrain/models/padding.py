"""Leaving padding out: layers see the real tokens of a micro-batch one behind the other, sample by sample.

Padding is work for nothing (as in ByteTransformer, Zhai et al., 2022): everything but attention works on each
token by itself, and attention on each sample.

Legend: B micro-batch, S seq_length, T tokens that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Kept:
    """Which tokens of a padded micro-batch the layers see."""

    places: Tensor
    """[T] int64, distinct, in the flattened [S, B]: sample by sample, the shortest first, then padding."""
    shape: tuple[int, int]
    """S, B."""
    groups: tuple[tuple[int, int], ...]
    """Neighbours of one length: how many, and their tokens. Padding that is kept is a group of its own."""

    @property
    def all(self) -> bool:
        """Whether there is no padding; then the samples stand in their order."""
        return self.groups == (self.shape[::-1],)

    def take(self, padded: Tensor) -> Tensor:
        """[S, B, ...] to [T, 1, ...]."""
        if self.all:
            kept = padded.transpose(0, 1).flatten(0, 1)
        else:
            kept = _Take.apply(padded.flatten(0, 1), self.places)  # type: ignore[no-untyped-call]
        return kept.unsqueeze(1)

    def put(self, kept: Tensor) -> Tensor:
        """[T, 1, ...] to [S, B, ...], zeros where nothing was kept."""
        rows, (seq_length, batch) = kept.squeeze(1), self.shape
        if self.all:
            return rows.view(batch, seq_length, *rows.shape[1:]).transpose(0, 1)
        put: Tensor = _Put.apply(rows, self.places, seq_length * batch)  # type: ignore[no-untyped-call]
        return put.view(seq_length, batch, *rows.shape[1:])

    def split(self, kept: Tensor) -> list[Tensor]:
        """[T, 1, ...] to [length, samples, ...] for each group."""
        rows = kept.squeeze(1)
        parts = torch.split(rows, [samples * length for samples, length in self.groups])
        return [
            part.view(*group, *rows.shape[1:]).transpose(0, 1)
            for part, group in zip(parts, self.groups, strict=True)
        ]

    def join(self, parts: list[Tensor]) -> Tensor:
        """The reverse."""
        rows = [part.transpose(0, 1).flatten(0, 1) for part in parts]
        return (torch.cat(rows) if len(rows) > 1 else rows[0]).unsqueeze(1)


def keep(padding_mask: Tensor, multiple_of: int) -> Kept:
    """The real tokens of a micro-batch, with padding up to a multiple of a number, for ranks that share them.

    Args:
        padding_mask: [B, S] bool, True = a real token.
        multiple_of: It divides T; it must divide S.
    """
    batch, seq_length = padding_mask.shape
    lengths, order = padding_mask.sum(1).sort(stable=True)
    by_length: list[int] = lengths.tolist()
    real = sum(by_length)
    wanted = max(1, -(-real // multiple_of)) * multiple_of
    padding_last = torch.argsort(padding_mask[order].logical_not().flatten().byte(), stable=True)[:wanted]
    samples, tokens = order[padding_last // seq_length], padding_last % seq_length
    groups = [(len(list(same)), length) for length, same in groupby(by_length) if length]
    if wanted > real:
        groups.append((1, wanted - real))
    return Kept(tokens * batch + samples, (seq_length, batch), tuple(groups))


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
