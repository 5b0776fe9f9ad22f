"""What this machine offers to the ranks."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path


def usable_cores() -> int:
    """CPU cores that this process may use: fewer than the machine has, under SLURM or taskset."""
    return len(os.sched_getaffinity(0))


def gpu_count(devices: Path = Path("/dev")) -> int:
    """GPUs that this process may use: those in CUDA_VISIBLE_DEVICES where it is set, or device files."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip()])
    return len(list(devices.glob("nvidia[0-9]*")))


def free_port() -> int:
    """A TCP port that nobody listens on at this moment.

    It lies below the range that the kernel takes ports of outgoing connections from: such a port could be
    gone by the time the ranks have imported torch.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError("found no free port between 20000 and 30000; give one with --master-port")
