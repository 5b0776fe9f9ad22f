"""Leaving an update out without a trace, in spite of what DeepSpeed's optimizers keep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def reported_overflow(optimizer: Any) -> Iterator[None]:
    """Let DeepSpeed find an infinite gradient norm: it discards the update and cleans up, at every stage.

    Its loss scale, if it has one, stays as it is.
    """
    infinite = {
        "scaled_global_norm": lambda *_, **__: math.inf,  # stages 1 and 2
        "_get_norm_groups": lambda: [torch.tensor(math.inf)],  # stage 3
        "get_grads_for_norm": lambda *_, **__: ([torch.tensor([math.inf])], {}),  # its bf16 optimizer
        "_update_scale": lambda *_: None,
    }
    patched = {name: vars(optimizer).get(name) for name in infinite if hasattr(optimizer, name)}
    for name in patched:
        setattr(optimizer, name, infinite[name])
    try:
        yield
    finally:
        for name, ours in patched.items():
            delattr(optimizer, name)  # the class's own again
            if ours is not None:
                setattr(optimizer, name, ours)


def forget_gradients(optimizer: Any) -> None:
    """Drop the fp32 sums that stages 1 and 2 keep after an update that was left out.

    With an offloaded optimizer DeepSpeed 0.19.8 forgets to, and adds the next step's gradients to them.
    """
    for name in ("averaged_gradients", "all_grad_tensors"):
        sums = getattr(optimizer, name, None)
        if sums and hasattr(optimizer, "single_partition_of_fp32_groups"):
            sums.update(dict.fromkeys(sums))
