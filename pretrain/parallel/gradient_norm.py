"""The global norm of gradients that are not partitioned (stage 0)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.parallel.topology import Topology


def global_norm(gradients: Sequence[tuple[nn.Parameter, Tensor]], topology: Topology) -> float:
    """Over all tensor-parallel ranks, which call it together; a replicated parameter counts once.

    Args:
        gradients: Of all trained parameters, each with its parameter; reduced over data-parallel ranks.
        topology: Of the ranks.
    """
    norms: dict[bool, list[Tensor]] = {True: [], False: []}  # picked on the host: no wait for the device
    for (parameter, _), norm in zip(
        gradients, torch._foreach_norm([gradient for _, gradient in gradients]), strict=True
    ):
        norms[bool(getattr(parameter, "tensor_model_parallel", False))].append(norm)
    split, whole = (_sum_of_squares(norms[is_split], topology.device) for is_split in (True, False))
    dist.all_reduce(split, group=topology.tensor_model_parallel_group)
    return float((split + whole).sqrt())


def _sum_of_squares(norms: list[Tensor], device: torch.device) -> Tensor:
    return torch.stack(norms).square().sum() if norms else torch.zeros((), device=device)
