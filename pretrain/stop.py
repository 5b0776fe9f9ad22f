"""Stopping in good order: a signal becomes a decision that all ranks share."""

from __future__ import annotations

import os
import signal
from types import FrameType

import torch
import torch.distributed as dist

from pretrain.parallel.topology import Topology

STOPPED_EXIT_CODE = 75
"""Exit code of a job that was asked to stop and saved (EX_TEMPFAIL): run it again to go on."""


class StopSignal:
    """Remembers SIGTERM, SIGINT, SIGUSR1 and SIGUSR2; a second SIGINT or SIGTERM exits at once."""

    def __init__(self, topology: Topology) -> None:
        self._device = topology.device
        self._received = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._remember)

    def agreed(self) -> bool:
        """True on every rank as soon as any rank got a signal; call at step boundaries on all ranks."""
        flag = torch.tensor(self._received, device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self._received and number in (signal.SIGTERM, signal.SIGINT):
            os._exit(128 + number)
        self._received = 1
