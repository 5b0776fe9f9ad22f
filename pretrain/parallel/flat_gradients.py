"""The flat fp32 gradients of DeepSpeed's bf16 optimizer: written once, summed over ranks where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_ELEMENTS = 2**24
"""Gradients that are summed at once, 64 MB: enough to use the links well, few enough to begin early. A larger
parameter has a bucket of its own."""


@dataclass(slots=True, eq=False)
class _Bucket:
    """Neighbouring gradients of one parameter group; one all-reduce sums them."""

    gradients: Tensor
    """[elements] fp32, a piece of the group's flat tensor."""
    members: frozenset[int]
    """Their indices in the group."""
    place: int
    """Where the first of its parameters stands in the model; the backward pass comes there last."""
    missing: set[int] = field(default_factory=set)
    """Members whose gradient the last micro-batch has not added yet."""


class FlatGradients:
    """Takes over what deepspeed 0.19.8 does in too many passes, and only when the backward pass is over.

    It sets all sums to zero, twice a step, makes an fp32 copy of each bf16 gradient, adds it, and copies all
    of them into buckets and back to reduce them. Here the first micro-batch of a step overwrites what the
    last step left, converting on the way, and the flat tensors are reduced as they are, in buckets: if wanted
    while the last micro-batch still goes backward (Li et al., 2020, "PyTorch Distributed", section 3.2.3).
    All ranks begin the buckets in one order, from the end of the model to its start, whatever is complete
    first.
    """

    def __init__(
        self, optimizer: Any, parameters: Iterable[nn.Parameter], ranks: dist.ProcessGroup, *, early: bool
    ) -> None:
        """Change the methods of a `BF16_Optimizer`, which must not reduce gradients itself any more.

        Args:
            optimizer: Theirs.
            parameters: The model's, in its order.
            ranks: To sum over.
            early: Whether a bucket is summed as soon as the last micro-batch has completed it.
        """
        self._optimizer = optimizer
        self._ranks = ranks
        self._early = early
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        """By group and index of the parameter."""
        if ranks.size() > 1:
            places = {parameter: place for place, parameter in enumerate(parameters)}
            self._buckets = _buckets(optimizer, places)
        self._in_order = tuple(dict.fromkeys(self._buckets.values()))
        self._waiting: list[_Bucket] = []
        self._sums: list[dist.Work] = []
        optimizer._update_hp_grad = self._write_or_add
        optimizer.clear_hp_grads = self._forget
        self._for_norm = optimizer.get_grads_for_norm
        optimizer.get_grads_for_norm = self._for_norm_or_clipping

    def begin_last(self) -> None:
        """To be called before the last backward pass of a step."""
        self._waiting = list(self._in_order)
        for bucket in self._waiting:
            bucket.missing = set(bucket.members)

    @torch.no_grad()
    def finish(self) -> None:
        """To be called after it: sum the rest and wait; a parameter that no loss reached counts as zero."""
        for gradients, written in zip(self._optimizer.fp32_groups_gradients, self._written, strict=True):
            for index, done in enumerate(written):
                if not done:
                    gradients[index].zero_()
            written[:] = [True] * len(written)  # one rank's loss may reach what another's does not
        self._sum_next(len(self._waiting))
        for work in self._sums:
            work.wait()
        self._sums.clear()

    @property
    def _written(self) -> list[list[bool]]:
        """Of each parameter in each group, whether this step has written its gradient yet."""
        written: list[list[bool]] = self._optimizer.fp32_groups_has_gradients
        return written

    @torch.no_grad()
    def _write_or_add(self, parameter: nn.Parameter, group: int, index: int, clear_lp_grads: bool) -> None:
        if parameter.grad is None:
            return
        sums: Tensor = self._optimizer.fp32_groups_gradients[group][index]
        gradient = parameter.grad.view(sums.shape)
        if self._written[group][index]:
            sums.add_(gradient)
        else:
            sums.copy_(gradient)
        parameter._hp_grad = sums  # type: ignore[attr-defined]  # where DeepSpeed's utilities look for it
        self._written[group][index] = True
        if clear_lp_grads:
            parameter.grad.zero_()
        if self._early and (self._waiting or self._sums):
            self._complete(self._buckets[group, index], index)

    def _complete(self, bucket: _Bucket, index: int) -> None:
        """Note a gradient of the last micro-batch, and begin the sums that waited for it alone."""
        if index not in bucket.missing:
            raise RuntimeError(
                "a gradient was added twice in one backward pass, as of a parameter in two recomputed parts; "
                "the first half may be summed already"
            )
        bucket.missing.remove(index)
        ready = 0
        while ready < len(self._waiting) and not self._waiting[ready].missing:
            ready += 1
        self._sum_next(ready)

    def _sum_next(self, count: int) -> None:
        for bucket in self._waiting[:count]:
            work = dist.all_reduce(bucket.gradients, group=self._ranks, async_op=True)
            assert work is not None  # this rank is one of the group
            self._sums.append(work)
        del self._waiting[:count]

    def _for_norm_or_clipping(self, for_clipping: bool = False) -> Any:
        """Theirs for the norm; to be clipped is only what this rank's update reads, not all gradients."""
        return self._optimizer.fp32_groups_gradient_flat_partition if for_clipping else self._for_norm()

    def _forget(self) -> None:
        for written in self._written:
            written[:] = [False] * len(written)


def _buckets(optimizer: Any, places: Mapping[nn.Parameter, int]) -> dict[tuple[int, int], _Bucket]:
    """Buckets by group and index, those at the end of the model first."""
    found: list[tuple[int, _Bucket]] = []
    for group, flat in enumerate(optimizer.fp32_groups_gradients_flat):
        sizes = [gradient.numel() for gradient in optimizer.fp32_groups_gradients[group]]
        start = 0
        for members in _runs(sizes):
            end = start + sum(sizes[index] for index in members)
            place = min(places[optimizer.bf16_groups[group][index]] for index in members)
            found.append((group, _Bucket(flat[start:end], frozenset(members), place)))
            start = end
    found.sort(key=lambda one: one[1].place, reverse=True)
    return {(group, index): bucket for group, bucket in found for index in bucket.members}


def _runs(sizes: list[int]) -> Iterator[range]:
    """Neighbours that fill a bucket together."""
    start = 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sum(sizes[start : end + 1]) > BUCKET_ELEMENTS:
            yield range(start, end)
            start = end
