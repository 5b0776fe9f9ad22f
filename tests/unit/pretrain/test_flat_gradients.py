"""What our methods do to the gradients of DeepSpeed's bf16 optimizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.parallel import flat_gradients
from pretrain.parallel.discarded_updates import reported_overflow
from pretrain.parallel.flat_gradients import FlatGradients

ALONE, TWO = (cast(dist.ProcessGroup, SimpleNamespace(size=lambda n=n: n)) for n in (1, 2))


def optimizer_of(*groups: list[nn.Parameter]) -> Any:
    """With what an earlier step left in its sums, and two elements of padding."""
    flats = [torch.full((sum(p.numel() for p in group) + 2,), torch.nan) for group in groups]
    sums = [
        list(flat[:-2].split([p.numel() for p in group])) for flat, group in zip(flats, groups, strict=True)
    ]
    return SimpleNamespace(
        bf16_groups=list(groups),
        fp32_groups_gradients_flat=flats,
        fp32_groups_gradients=sums,
        fp32_groups_has_gradients=[[False] * len(group) for group in groups],
        fp32_groups_gradient_flat_partition=[flat[len(flat) // 2 :] for flat in flats],
        get_grads_for_norm=lambda: (sums, {}),
    )


def parameter(gradient: float, elements: int = 4) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(2, elements // 2, dtype=torch.bfloat16))
    made.grad = torch.full_like(made, gradient)
    return made


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """What was handed to all-reduces, each of which doubles it, as if the other rank had the same."""
    seen: list[list[float]] = []

    class Work:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

        def wait(self) -> None:
            self.tensor.mul_(2)

    def all_reduce(tensor: Tensor, *, group: object, async_op: bool) -> Work:
        assert group is TWO and async_op
        seen.append(tensor.tolist())
        return Work(tensor)

    monkeypatch.setattr(flat_gradients.dist, "all_reduce", all_reduce)
    return seen


def test_micro_batches_are_added_in_fp32_and_old_values_are_gone() -> None:
    small, large = parameter(2.0**-12), parameter(1.0)  # their sum has no bf16 number
    optimizer = optimizer_of([small])
    FlatGradients(optimizer, [small], ALONE, early=True)
    for one in (large, small):
        optimizer._update_hp_grad(one, 0, 0, clear_lp_grads=False)
    assert optimizer.fp32_groups_gradients[0][0].tolist() == [1 + 2.0**-12] * 4
    optimizer.clear_hp_grads()
    optimizer._update_hp_grad(small, 0, 0, clear_lp_grads=True)
    assert optimizer.fp32_groups_gradients[0][0].tolist() == [2.0**-12] * 4
    assert small.grad is not None and not small.grad.any()


def test_what_no_loss_reached_counts_as_zero_and_joins_the_sum(summed: list[list[float]]) -> None:
    reached, unreached = parameter(3.0), parameter(0.0)
    unreached.grad = None
    for ranks, factor in ((ALONE, 1), (TWO, 2)):
        optimizer = optimizer_of([reached, unreached])
        gradients = FlatGradients(optimizer, [reached, unreached], ranks, early=False)
        gradients.begin_last()
        for index, one in enumerate((reached, unreached)):
            optimizer._update_hp_grad(one, 0, index, clear_lp_grads=False)
        gradients.finish()
        assert optimizer.fp32_groups_gradients_flat[0][:-2].tolist() == [3.0 * factor] * 4 + [0.0] * 4
        assert optimizer.fp32_groups_has_gradients == [[True, True]]
    assert summed == [[3.0] * 4 + [0.0] * 4]


def test_buckets_are_summed_during_the_last_backward_pass_in_one_order(
    summed: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat_gradients, "BUCKET_ELEMENTS", 8)
    first, bias, second, last = model = [parameter(1), parameter(2, 2), parameter(3), parameter(4)]
    optimizer = optimizer_of([first, second, last], [bias])
    gradients = FlatGradients(optimizer, model, TWO, early=True)
    place = {first: (0, 0), second: (0, 1), last: (0, 2), bias: (1, 0)}

    def backward(*reached: nn.Parameter) -> None:
        for one in reached:
            optimizer._update_hp_grad(one, *place[one], clear_lp_grads=False)

    for step in (1, 2):
        backward(last, second, bias, first)  # accumulated
        assert len(summed) == 3 * (step - 1)
        gradients.begin_last()
        backward(bias)  # complete before its turn
        assert len(summed) == 3 * (step - 1)
        backward(last)  # alone in the first bucket
        assert summed[-2:] == [[8.0] * 4, [4.0] * 2]
        backward(second, first)
        gradients.finish()
        assert summed[-1] == [2.0] * 4 + [6.0] * 4
        assert optimizer.fp32_groups_gradients_flat[0][:-2].tolist() == [4.0] * 4 + [12.0] * 4 + [16.0] * 4
        assert optimizer.fp32_groups_gradients_flat[1][:-2].tolist() == [8.0] * 2
        optimizer.clear_hp_grads()


def test_a_gradient_that_comes_after_its_sum_began_is_an_error(summed: list[list[float]]) -> None:
    one = parameter(1)
    optimizer = optimizer_of([one])
    FlatGradients(optimizer, [one], TWO, early=True).begin_last()
    optimizer._update_hp_grad(one, 0, 0, clear_lp_grads=False)
    with pytest.raises(RuntimeError, match="added twice"):
        optimizer._update_hp_grad(one, 0, 0, clear_lp_grads=False)


def test_clipped_is_what_this_rank_updates_alone() -> None:
    """All gradients make the norm; the same coefficient for a part of them."""
    weight = parameter(1.0)
    optimizer = optimizer_of([weight])
    FlatGradients(optimizer, [weight], TWO, early=False)
    (found,) = optimizer.get_grads_for_norm(for_clipping=True)
    assert found is optimizer.fp32_groups_gradient_flat_partition[0]
    assert optimizer.get_grads_for_norm() == (optimizer.fp32_groups_gradients, {})
    with reported_overflow(optimizer):
        assert optimizer.get_grads_for_norm()[0][0].isinf().all()
    assert optimizer.get_grads_for_norm(for_clipping=True)[0] is found  # a step that was discarded
