"""Our ranks as DeepSpeed asks for them."""

from __future__ import annotations

import torch.distributed as dist

from pretrain.parallel.topology import Topology


class ModelParallelUnit:
    """What DeepSpeed calls `mpu`: group, size and rank under the names that it looks for.

    megatron-core's own parallel_state does not fit: it lacks get_model_parallel_world_size.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that hold the slices of one model."""
        return self._topology.tensor_model_parallel_group

    def get_model_parallel_world_size(self) -> int:
        """Tensor-parallel size."""
        return self._topology.tensor_model_parallel_size

    def get_model_parallel_rank(self) -> int:
        """Tensor-parallel rank."""
        return self._topology.tensor_model_parallel_rank

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_rank = get_model_parallel_rank

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that hold the same slice."""
        return self._topology.data_parallel_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Global ranks of the data-parallel group."""
        return dist.get_process_group_ranks(self._topology.data_parallel_group)

    def get_data_parallel_world_size(self) -> int:
        """Data-parallel size."""
        return self._topology.data_parallel_size

    def get_data_parallel_rank(self) -> int:
        """Data-parallel rank."""
        return self._topology.data_parallel_rank
