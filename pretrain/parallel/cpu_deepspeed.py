"""What DeepSpeed 0.19.8 needs to run well on CPU ranks over gloo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import deepspeed
import torch.distributed as dist
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.zero import stage_1_and_2
from torch import Tensor


def adapt_to_cpu() -> None:
    """To be called before an engine is built; calling it again changes nothing."""
    # The shared-memory reducer would be compiled at first use, a minute; gloo reduces as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Without AVX512-FP16 DeepSpeed refuses fp16; torch computes it all the same, slowly.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    for module in (bf16_optimizer, stage_1_and_2):
        module.all_gather_dp_groups = gather_partitions


def gather_partitions(
    groups_flat: Sequence[Tensor],
    partitioned_param_groups: Sequence[Sequence[Tensor]],
    dp_process_group: Sequence[dist.ProcessGroup],
    *_sizes: Any,
    **_named: Any,
) -> None:
    """`all_gather_dp_groups` by sends and receives into place; gloo's own takes 2.5 to 4 times as long.

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
