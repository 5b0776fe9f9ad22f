"""Gathering the weights that each data-parallel rank has updated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor


def gather_partitions(
    groups_flat: Sequence[Tensor],
    partitioned_param_groups: Sequence[Sequence[Tensor]],
    dp_process_group: Sequence[dist.ProcessGroup],
    *_sizes: Any,
    **_named: Any,
) -> None:
    """DeepSpeed's `all_gather_dp_groups` by sends and receives into place.

    gloo's own all-gather takes 2.5 to 5 times as long (benchmarks/LOG.md).

    Args:
        groups_flat: The flat weights of each parameter group; unused, its partitions are views of it.
        partitioned_param_groups: Per parameter group the partition of each data-parallel rank; this rank's is
            complete, the others are received.
        dp_process_group: Per parameter group its data-parallel ranks.
    """
    for partitions, group in zip(partitioned_param_groups, dp_process_group, strict=True):
        me = dist.get_rank(group)
        others = [rank for rank in range(dist.get_world_size(group)) if rank != me]
        mine = partitions[me].detach()
        operations = [dist.P2POp(dist.isend, mine, group=group, group_peer=rank) for rank in others]
        operations += [
            dist.P2POp(dist.irecv, partitions[rank].detach(), group=group, group_peer=rank) for rank in others
        ]
        for transfer in dist.batch_isend_irecv(operations) if operations else ():
            transfer.wait()
