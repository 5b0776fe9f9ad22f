"""What this machine offers to the ranks."""

from __future__ import annotations

import os
import socket
from pathlib import Path

# NVIDIA, NVIDIA under WSL, AMD. A container may show any subset of a host's numbered devices.
ACCELERATOR_DEVICES = ("nvidia[0-9]*", "dxg", "kfd")


def usable_cores() -> int:
    """CPU cores that this process may use: fewer than the machine has, under SLURM or taskset."""
    return len(os.sched_getaffinity(0))


def has_accelerator(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU is visible, told by its device file."""
    return any(True for pattern in ACCELERATOR_DEVICES for _ in devices.glob(pattern))


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
