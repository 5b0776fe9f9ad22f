"""Where this rank stands: tensor-parallel and data-parallel groups."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.config.environment import world_size_from_environment
from pretrain.config.errors import ConfigError
from pretrain.parallel.device import (
    backend,
    compute_device,
    keep_freed_memory,
    tell_of_idle_gpu,
    use_cpu,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """One rank's place in the TP x DP grid; tensor-parallel ranks are neighbours."""

    rank: int
    world_size: int
    tensor_model_parallel_size: int
    tensor_model_parallel_rank: int
    data_parallel_size: int
    data_parallel_rank: int
    device: torch.device
    tensor_model_parallel_group: dist.ProcessGroup
    data_parallel_group: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes shared files."""
        return self.rank == 0


def initialize_topology(tensor_model_parallel_size: int, timeout_seconds: int = 1800) -> Topology:
    """Join the process group of all ranks and split it into TP x DP.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun, deepspeed and
    `headwater launch` set them; a process started by hand becomes the only rank.

    Raises:
        ConfigError: If the tensor-parallel size does not divide the number of ranks.
    """
    device = compute_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes the device's number from there
    else:
        use_cpu()
        keep_freed_memory()
    world_size = world_size_from_environment()
    if world_size % tensor_model_parallel_size:
        raise ConfigError(
            f"parallel.tensor_model_parallel_size: {tensor_model_parallel_size} does not divide "
            f"the number of ranks: {world_size}"
        )
    if not dist.is_initialized():
        if world_size == 1 and "MASTER_ADDR" not in os.environ:
            os.environ["LOCAL_RANK"] = "0"  # DeepSpeed insists on it
            dist.init_process_group(backend(device), store=_lone_store(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend(device), timeout=timedelta(seconds=timeout_seconds))
    if device.type == "cpu" and dist.get_rank() == 0:
        tell_of_idle_gpu()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_model_parallel_size, create_gloo_process_groups=False
    )
    return Topology(
        rank=dist.get_rank(),
        world_size=world_size,
        tensor_model_parallel_size=tensor_model_parallel_size,
        tensor_model_parallel_rank=parallel_state.get_tensor_model_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        device=device,
        tensor_model_parallel_group=parallel_state.get_tensor_model_parallel_group(),
        data_parallel_group=parallel_state.get_data_parallel_group(),
    )


def _lone_store() -> Any:
    return dist.HashStore()  # type: ignore[attr-defined]  # public, but missing from __all__


def store_server() -> tuple[Any, int]:
    """A store on this machine where ranks can meet, and its port; it lives as long as the object."""
    store = dist.TCPStore(  # type: ignore[attr-defined]  # as above
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    return store, store.port


def leave_process_group() -> None:
    """Take this rank out of all groups, at the end of a job that ended well on every rank.

    Groups that stay behind cost more than memory: each gloo group keeps threads that wake up all the time.
    """
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
