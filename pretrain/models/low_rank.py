"""LoRA (Hu et al., 2022): trainable low-rank paths beside the frozen linears of a tensor-parallel model.

y = W x + (alpha / r) B A x. What each tensor-parallel rank holds and exchanges follows from how W is split:

- column-parallel (query, key, value; first MLP matrix): x is whole on every rank, so A is whole and B split
  over its rows. A x enters the parallel region like x does: its gradient is added up over the ranks, which
  makes the gradient of A whole and the same on all of them.
- row-parallel (attention output; second MLP matrix): each rank has a part of x, so A is split over its
  columns and A x is added up over the ranks; B is whole and sees the same on all of them.

Legend: r rank of the path, S sequence, B micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn

FIRST, SECOND = "lora_a", "lora_b"
"""Parameters of a linear with a path: A [r, in] and B [out, r]."""


def add_low_rank_paths(
    model: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int
) -> list[str]:
    """Give linears a path that changes nothing yet: A as in peft (Kaiming uniform), B zero.

    A is drawn whole, then sliced: the same at every tensor-parallel size.

    Args:
        model: With its weights, not yet an engine's.
        targets: Last names of the linears, such as "linear_qkv".
        rank: r.
        alpha: The path is scaled by alpha / r.
        seed: Of the draws.

    Returns:
        The full names of the linears.
    """
    generator = torch.Generator().manual_seed(seed)
    names = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets and isinstance(
            module, ColumnParallelLinear | RowParallelLinear
        ):
            _add_path(module, rank, generator)
            module.register_forward_hook(partial(_with_path, alpha / rank))
            names.append(name)
    return names


def train_only(model: nn.Module, wanted: Callable[[str], bool]) -> None:
    """Freeze all parameters but those whose name is wanted."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))


def _add_path(module: Any, rank: int, generator: torch.Generator) -> None:
    column = isinstance(module, ColumnParallelLinear)
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    weight = module.weight
    bound = 1.0 / math.sqrt(module.input_size)  # kaiming_uniform_ with a = sqrt(5)
    first = torch.empty(rank, module.input_size).uniform_(-bound, bound, generator=generator)
    if not column:
        first = first.chunk(tp_size, dim=1)[tp_rank].contiguous()
    second = torch.zeros(weight.shape[0], rank)
    for name, values in ((FIRST, first), (SECOND, second)):
        setattr(module, name, nn.Parameter(values.to(weight.dtype).to(weight.device)))
    if column:
        set_tensor_model_parallel_attributes(module.lora_b, True, 0, weight.partition_stride)
    else:
        set_tensor_model_parallel_attributes(module.lora_a, True, 1, weight.partition_stride)


def _with_path(scale: float, module: Any, inputs: tuple[Tensor, ...], output: tuple[Any, ...]) -> Any:
    """Hook behind a linear: [S, B, in] inputs, output [S, B, out] and a bias that is added later."""
    low = F.linear(inputs[0], module.lora_a)
    if isinstance(module, ColumnParallelLinear):
        low = copy_to_tensor_model_parallel_region(low)
    else:
        low = reduce_from_tensor_model_parallel_region(low.contiguous())
    return (output[0] + scale * F.linear(low, module.lora_b), *output[1:])
