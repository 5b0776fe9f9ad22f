"""Pieces of a tensor that fit the cache of a CPU, for a chain of passes in fp32 over values in bf16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ELEMENTS = 2**19
"""At a time, 2 MB in fp32."""


def row_blocks(rows: int, width: int, copies: int) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Slices of some rows after others, each with memory that the next one overwrites.

    Args:
        rows: Of the tensor, in all.
        width: Elements of a row.
        copies: [rows of the slice, width] fp32 tensors that each slice gets, not initialised.
    """
    height = min(rows, max(1, ELEMENTS // width))
    memory = torch.empty(copies, height, width, dtype=torch.float32)
    for start in range(0, rows, max(1, height)):
        end = min(start + height, rows)
        yield slice(start, end), tuple(memory[:, : end - start])
