"""Small exchanges of Python values between ranks."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def broadcast_from_main(value: Any) -> Any:
    """The main rank's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
