"""The flat fp32 gradients of DeepSpeed's bf16 optimizer: written once, summed over ranks where they lie."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FlatGradients:
    """Takes over what deepspeed 0.19.8 does in too many passes.

    It sets all sums to zero, twice a step, makes an fp32 copy of each bf16 gradient, adds it, and copies all
    of them into buckets and back to reduce them. Here the first micro-batch of a step overwrites what the
    last step left, converting on the way, and the flat tensors are reduced as they are.
    """

    def __init__(self, optimizer: Any) -> None:
        """Change the methods of a `BF16_Optimizer`, which must not reduce gradients itself any more."""
        self._optimizer = optimizer
        optimizer._update_hp_grad = self._write_or_add
        optimizer.clear_hp_grads = self._forget

    @torch.no_grad()
    def sum_over(self, group: dist.ProcessGroup) -> None:
        """Sum over the ranks after the last micro-batch; a parameter that no loss reached counts as zero."""
        for gradients, written in zip(self._optimizer.fp32_groups_gradients, self._written, strict=True):
            for index, done in enumerate(written):
                if not done:
                    gradients[index].zero_()
            written[:] = [True] * len(written)  # one rank's loss may reach what another's does not
        if group.size() > 1:
            for flat in self._optimizer.fp32_groups_gradients_flat:
                dist.all_reduce(flat, group=group)

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

    def _forget(self) -> None:
        for written in self._written:
            written[:] = [False] * len(written)
