"""Copies of a rank's state in host memory, made while training goes on.

Weights and moments stay what they are from one update to the next, so they can be copied during the forward
and backward passes between (Maurya et al., DataStates-LLM, arXiv 2406.10707); only the next update waits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """Copies of tensors that are still to be made, by whichever thread asks first.

    Attributes:
        tensors: The copies by name, [n] fp32; right once `make` has returned.
    """

    def __init__(self, sources: Mapping[str, Tensor], copies: Mapping[str, Tensor]) -> None:
        """Set up; nothing is copied.

        Args:
            sources: On the compute device, as the thread's current stream leaves them; nobody writes them
                before `make` has returned.
            copies: By the same names, on the host.
        """
        self.tensors = copies
        self._sources: Mapping[str, Tensor] | None = sources
        self._lock = threading.Lock()
        self._device = next((source.device for source in sources.values() if source.is_cuda), None)
        self._computed = torch.cuda.current_stream(self._device).record_event() if self._device else None

    def make(self) -> None:
        """Copy, or wait for the thread that does; the second call returns at once."""
        with self._lock:
            if self._sources is None:
                return
            # A thread begins with GPU 0; leaving a stream of another one would set 0 up, half a GB a rank.
            with torch.cuda.device(self._device) if self._device else nullcontext():
                self._copy(self._sources)
            self._sources = None

    def _copy(self, sources: Mapping[str, Tensor]) -> None:
        # A stream of its own: the copy engine works beside the kernels of forward and backward.
        stream: Any = torch.cuda.Stream(self._device) if self._device else None  # type: ignore[no-untyped-call]
        if stream and self._computed:
            stream.wait_event(self._computed)
        with torch.cuda.stream(stream) if stream else nullcontext():
            for name, source in sources.items():
                self.tensors[name].copy_(source.detach(), non_blocking=True)
        if stream:
            stream.synchronize()


class HostMemory:
    """One buffer for the copies of a rank, used again and again: host memory stays bounded."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def copy_of(self, sources: Mapping[str, Tensor]) -> HostCopy:
        """Room for copies of 1-D fp32 tensors; the copies made before are no longer valid.

        Args:
            sources: On the compute device.
        """
        total = sum(source.numel() for source in sources.values())
        if self._buffer.numel() < total:
            on_device = any(source.is_cuda for source in sources.values())
            self._buffer = torch.empty(0)  # give the old one back first
            self._buffer = torch.empty(total, dtype=torch.float32, pin_memory=on_device)
        pieces = torch.split(self._buffer[:total], [source.numel() for source in sources.values()])
        return HostCopy(sources, dict(zip(sources, pieces, strict=True)))
