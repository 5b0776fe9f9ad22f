"""Stopping in good order: a signal becomes a decision that all ranks share."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import torch
import torch.distributed as dist

from pretrain.parallel.topology import Topology

_SAME_REQUEST_SECONDS = 1.0


class StopSignal:
    """Remembers SIGTERM, SIGINT, SIGUSR1 and SIGUSR2; only a second SIGINT, later, exits at once.

    One request often arrives as several signals: SLURM sends SIGUSR1 and then SIGTERM, launchers pass on what
    the terminal has already sent. None of these may end a rank that is saving.
    """

    def __init__(self, topology: Topology) -> None:
        self._device = topology.device
        self._received = 0
        self._interrupted_at = float("inf")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._remember)

    def agreed(self) -> bool:
        """True on every rank as soon as any rank got a signal; call at step boundaries on all ranks."""
        flag = torch.tensor(self._received, device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and now - self._interrupted_at > _SAME_REQUEST_SECONDS:
            os._exit(128 + number)
        if number == signal.SIGINT:
            self._interrupted_at = min(self._interrupted_at, now)
        self._received = 1
