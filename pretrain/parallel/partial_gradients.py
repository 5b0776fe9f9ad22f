"""Gradients that DeepSpeed does not reduce: those of parameters that see a part of the sequence only.

Under sequence parallelism each tensor-parallel rank normalises and adds biases on its own positions. The
gradients of these replicated parameters are then partial sums. megatron-core marks the parameters
(`sequence_parallel`) and adds them up in its own training loop, which DeepSpeed replaces.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.parallel.topology import Topology


def reduce_partial_gradients(model: nn.Module, topology: Topology) -> list[str]:
    """Add the gradients of marked parameters up over the tensor-parallel ranks, in every backward pass.

    A hook runs before DeepSpeed takes the gradient, so this holds for every ZeRO stage, with recompute and
    with offload. The ranks of a tensor-parallel group run the same graph, hence the same order of sums.

    Returns:
        The names of the parameters; none without sequence parallelism.
    """
    group = topology.tensor_model_parallel_group

    def add_up(gradient: Tensor) -> Tensor:
        total = gradient.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total.to(gradient.dtype)

    marked = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if getattr(parameter, "sequence_parallel", False) and parameter.requires_grad
    ]
    for _, parameter in marked:
        parameter.register_hook(add_up)  # type: ignore[no-untyped-call]
    return [name for name, _ in marked]
