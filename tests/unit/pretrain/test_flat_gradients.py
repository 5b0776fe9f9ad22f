"""What our methods do to the gradients of DeepSpeed's bf16 optimizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pretrain.parallel.flat_gradients import FlatGradients

ALONE = cast(dist.ProcessGroup, SimpleNamespace(size=lambda: 1))


@pytest.fixture
def optimizer() -> Any:
    """Two parameters of four elements in one group, with what an earlier step left in their sums."""
    flat = torch.full((8,), torch.nan)
    return SimpleNamespace(
        fp32_groups_gradients_flat=[flat],
        fp32_groups_gradients=[[flat[:4], flat[4:]]],
        fp32_groups_has_gradients=[[False, False]],
    )


def parameter(gradient: float) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    made.grad = torch.full_like(made, gradient)
    return made


def test_micro_batches_are_added_in_fp32_and_old_values_are_gone(optimizer: Any) -> None:
    FlatGradients(optimizer)
    small, large = parameter(2.0**-12), parameter(1.0)  # their sum has no bf16 number
    for one in (large, small):
        optimizer._update_hp_grad(one, 0, 0, clear_lp_grads=False)
    assert optimizer.fp32_groups_gradients[0][0].tolist() == [1 + 2.0**-12] * 4
    optimizer.clear_hp_grads()
    optimizer._update_hp_grad(small, 0, 0, clear_lp_grads=True)
    assert optimizer.fp32_groups_gradients[0][0].tolist() == [2.0**-12] * 4
    assert small.grad is not None and not small.grad.any()


def test_what_no_loss_reached_counts_as_zero(optimizer: Any) -> None:
    gradients = FlatGradients(optimizer)
    optimizer._update_hp_grad(parameter(3.0), 0, 0, clear_lp_grads=False)
    unreached = parameter(0.0)
    unreached.grad = None
    optimizer._update_hp_grad(unreached, 0, 1, clear_lp_grads=False)
    gradients.sum_over(ALONE)
    assert optimizer.fp32_groups_gradients_flat[0].tolist() == [3.0] * 4 + [0.0] * 4
    assert optimizer.fp32_groups_has_gradients == [[True, True]]
