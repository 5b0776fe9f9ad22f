"""`python -m pretrain.network_check`: one small all-reduce of all ranks, before a job starts.

Every rank prints a line when it is ready and one with how it went; `launch.slurm_network` judges them. Over
NCCL on GPUs, over gloo on the CPU, with the variables that training will have. Loads torch and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from pretrain.config.environment import (
    adopt_place,
    cpu_is_meant,
    cuda_build,
    device_index,
    world_size_from_environment,
)
from pretrain.config.run_files import RANK_LINE

ELEMENTS = 1 << 20
"""4 MB in fp32: enough to pass through every connection."""


def main(argv: Sequence[str] | None = None) -> int:
    """Join the all-reduce of all ranks; 0 if its result is right."""
    parser = argparse.ArgumentParser(description="All-reduce over all ranks.")
    parser.add_argument("--seconds", type=float, required=True, help="how long to wait for the others")
    parser.add_argument("--gpu", action="store_true", help="the CPU will not do")
    arguments = parser.parse_args(argv)
    seconds = arguments.seconds
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)  # of whoever submitted the job; srun says what they are
    adopt_place()
    rank, world_size = int(os.environ.get("RANK", "0")), world_size_from_environment()
    began = time.monotonic()
    try:
        import torch

        _tell(rank, state="ready")
        began = time.monotonic()
        gpus = torch.cuda.is_available()
        if arguments.gpu and not gpus:
            built = cuda_build(torch.version.cuda)
            problem: str | None = f"torch {torch.__version__} ({built}) finds no GPU; does the driver fit it?"
        else:
            problem = _all_reduce(rank, world_size, timedelta(seconds=seconds), gpus)
    except Exception as error:  # whatever the network library raises is what is to be told
        problem = (str(error).splitlines() or [type(error).__name__])[0]
    took = time.monotonic() - began
    _tell(rank, state="done", problem=problem, seconds=round(took, 3), waited=took > 0.9 * seconds)
    return 1 if problem else 0


def _all_reduce(rank: int, world_size: int, timeout: timedelta, gpus: bool) -> str | None:
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if gpus and not cpu_is_meant():
        device = torch.device("cuda", device_index(torch.cuda.device_count()))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    numbers = torch.full((ELEMENTS,), float(rank + 1), device=device)
    dist.all_reduce(numbers)
    low, high = float(numbers.min()), float(numbers.max())
    dist.destroy_process_group()
    wanted = world_size * (world_size + 1) / 2
    return None if low == high == wanted else f"the sum over all ranks is {low:g} to {high:g}, not {wanted:g}"


def _tell(rank: int, **facts: object) -> None:
    # At once and whole: all ranks share one stream.
    os.write(1, f"{RANK_LINE}{json.dumps({'rank': rank, **facts})}\n".encode())


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads of a broken process group may wait for peers that are gone
