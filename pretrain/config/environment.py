"""What the launcher told this process; readable before torch is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from pretrain.config.errors import ConfigError

FIRST_PORT, PORTS = 20000, 10000
"""Ports that ranks meet at, below Linux's ephemeral ones, which begin at 32768."""

ACCELERATOR_DEVICES = ("nvidia[0-9]*", "dxg", "kfd")
"""NVIDIA, NVIDIA under WSL, AMD. A container may show any subset of a host's numbered devices."""


def has_accelerator(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU is visible, told by its device file."""
    return any(True for pattern in ACCELERATOR_DEVICES for _ in devices.glob(pattern))


def cpu_is_meant() -> bool:
    """Whether ranks are to compute on the CPU, GPU or not: DS_ACCELERATOR=cpu, as DeepSpeed reads it."""
    return os.environ.get("DS_ACCELERATOR") == "cpu"


def cuda_build(version: str | None) -> str:
    """What torch was built for, from `torch.version.cuda`."""
    return f"built for CUDA {version}" if version else "built without CUDA"


def world_size_from_environment() -> int:
    """Ranks that the launcher started (WORLD_SIZE); 1 when started by hand."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def adopt_place(env: MutableMapping[str, str] | None = None) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT where srun or mpirun started this rank.

    torchrun, deepspeed over ssh and `headwater launch` set them themselves; then nothing changes. DeepSpeed's
    slurm backend is a plain srun, its openmpi backend a plain mpirun.

    Args:
        env: The variables to read and complete; None takes those of this process.

    Raises:
        ConfigError: If nobody said where the ranks meet.
    """
    variables = os.environ if env is None else env
    if "RANK" in variables or "WORLD_SIZE" in variables:
        return
    # mpirun within a SLURM job: its processes have srun's variables, too, but not as their own.
    place = _from_mpirun(variables) or _from_srun(variables)
    if place.get("WORLD_SIZE", "1") == "1":
        return
    variables.update({name: value for name, value in place.items() if name not in variables})


def device_index(visible: int) -> int:
    """Which of the GPUs that this rank can see is its own.

    Args:
        visible: How many there are. One alone is the rank's: with `srun --gpus-per-task=1` each sees its own.

    Raises:
        ConfigError: The node has more ranks than GPUs.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise ConfigError(
            f"rank {os.environ.get('RANK', '0')} is number {local_rank} (from 0) on its node and sees "
            f"{visible} GPUs: start one rank for each GPU (ranks_per_node, --nproc), or set "
            "DS_ACCELERATOR=cpu"
        )
    return local_rank


def port_of_job(job_id: str) -> int:
    """The port where the ranks of a SLURM job meet; it follows from the job: jobs on one node differ."""
    return FIRST_PORT + int(job_id) * 7 % PORTS


def first_node(node_list: str) -> str:
    """The first name of a SLURM node list: `gpu[003-007,9],login` -> gpu003."""
    first = re.match(r"(?:\[[^]]*\]|[^,\[])+", node_list)
    if first is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={node_list!r} is not a list of nodes")
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", first[0])


def _from_srun(env: Mapping[str, str]) -> dict[str, str]:
    # SLURM_STEP_NUM_TASKS: srun alone sets it; SLURM_PROCID is there in a batch script without srun, too.
    place = _renamed(env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    if place and "MASTER_ADDR" not in env:
        place["MASTER_ADDR"] = first_node(env.get("SLURM_STEP_NODELIST", ""))
    if place and "MASTER_PORT" not in env:
        place["MASTER_PORT"] = str(port_of_job(env["SLURM_JOB_ID"]))
    return place


def _from_mpirun(env: Mapping[str, str]) -> dict[str, str]:
    place = _renamed(env, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing and place.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"mpirun started {place['WORLD_SIZE']} ranks, but {' and '.join(missing)} is not set: "
            "give mpirun `-x MASTER_ADDR=HOST -x MASTER_PORT=PORT`, the first host and a free port of it"
        )
    return place


def _renamed(env: Mapping[str, str], rank: str, size: str, local_rank: str) -> dict[str, str]:
    """The place of a rank under torch's names, from a launcher's; empty if that launcher did not start it."""
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank}
    return {ours: env[name] for ours, name in names.items()} if all(n in env for n in names.values()) else {}
