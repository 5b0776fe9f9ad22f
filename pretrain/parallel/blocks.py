"""Pieces of a tensor that fit the cache of a CPU, for a chain of passes in fp32 over values in bf16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ELEMENTS = 2**19
"""At a time, 2 MB in fp32."""


def bf16_on_cpu(x: Tensor) -> bool:
    """Whether torch's own passes over a tensor are slow enough to be replaced."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def row_slices(rows: int, width: int, elements: int) -> Iterator[slice]:
    """Slices of rows that hold about so many elements each."""
    height = max(1, elements // width)
    return (slice(start, min(start + height, rows)) for start in range(0, rows, height))


def row_blocks(
    rows: int, width: int, *, copies: int, elements: int | None = None, device: torch.device | None = None
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Slices of some rows after others, each with memory that the next one overwrites.

    Args:
        rows: Of the tensor, in all.
        width: Elements of a row.
        copies: [rows of the slice, width] fp32 tensors that each slice gets, not initialised.
        elements: Of a slice, about; None takes `ELEMENTS`.
        device: Of the memory; None is the CPU.
    """
    memory = torch.empty(copies, 0, width)
    for here in row_slices(rows, width, ELEMENTS if elements is None else elements):
        height = here.stop - here.start
        if not memory.numel():  # the first slice is the highest
            memory = torch.empty(copies, height, width, dtype=torch.float32, device=device)
        yield here, tuple(memory[:, :height])
