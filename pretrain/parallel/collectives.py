"""Small exchanges of Python values between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def broadcast_from_main(value: Any) -> Any:
    """The main rank's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def largest_over_ranks(values: Sequence[int], device: torch.device) -> list[int]:
    """The largest of each value over all ranks, on every rank; one small all-reduce."""
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]
