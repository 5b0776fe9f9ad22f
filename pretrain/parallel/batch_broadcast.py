"""Batches from the first tensor-parallel rank to the others, beside the computation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from pretrain.parallel.topology import Topology

Bytes = bytes | bytearray | memoryview


class BatchChannel:
    """Messages of bytes within a tensor-parallel group.

    They go over the CPU, in a gloo group of their own: no stream of the GPU waits for them, and the order of
    the model's own collectives does not matter.

    Attributes:
        is_reader: this rank is the first of its group, and sends.
    """

    def __init__(self, topology: Topology) -> None:
        """Make the groups; every rank of the job calls this."""
        self.is_reader = topology.tensor_model_parallel_rank == 0
        size = topology.tensor_model_parallel_size
        self._first = topology.rank - topology.tensor_model_parallel_rank
        for first in range(0, topology.world_size, size):  # every rank takes part in making every group
            group = dist.new_group(list(range(first, first + size)), backend="gloo")
            if first == self._first:
                self._group = group

    def post(self, message: Bytes | None) -> Callable[[], Bytes]:
        """Begin to hand a message over; every rank of the group calls it as often.

        Args:
            message: writable bytes on the reader (torch wants them so), None on the others.

        Returns:
            A function that waits for the message and gives it, writable on the others.

        Raises:
            RuntimeError: a rank of the group is gone.
        """
        length = torch.tensor([0 if message is None else len(message)])
        dist.broadcast(length, src=self._first, group=self._group)
        if message is None:
            buffer = torch.empty(int(length), dtype=torch.uint8)
        else:
            buffer = torch.from_numpy(np.frombuffer(message, dtype=np.uint8))
        work = dist.broadcast(buffer, src=self._first, group=self._group, async_op=True)

        def wait() -> Bytes:
            work.wait()
            content: Bytes = buffer.numpy().data
            return content

        return wait


def batch_channel(topology: Topology) -> BatchChannel | None:
    """The channel of this rank's tensor-parallel group; None where it is alone."""
    return BatchChannel(topology) if topology.tensor_model_parallel_size > 1 else None
