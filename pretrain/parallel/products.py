"""Matrix products in bf16 and fp16 on CPUs that have no instructions for them.

There torch multiplies in plain loops, some of them on one core: up to a hundred times slower than in fp32
(benchmarks/LOG.md). The product of two bf16 or fp16 values is exact in fp32, so sums in fp32 that are rounded
once at the end are what other CPUs and GPUs compute, but for the order of the sums.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretrain.parallel.blocks import row_slices

_OPERATORS = ("mm", "addmm", "bmm", "baddbmm")
"""What the passes of a model come down to, those of autograd too; each takes its two factors last."""
_BLOCK = 2**23
"""Elements of the left side or the result that are in fp32 at a time, 32 MB; the right side is as a whole."""


@functools.cache
def is_slow(dtype: torch.dtype) -> bool:
    """Whether this CPU, or this build of torch, has no fast products in a type."""
    checks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in checks:
        return False
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return not (has_onednn and getattr(torch.ops.mkldnn, checks[dtype])())


def multiply_in_fp32(dtype: torch.dtype) -> None:
    """Have torch compute products in fp32 and round them, for good in this process, if this type is slow."""
    if is_slow(dtype):
        _replace_operators()


@functools.cache  # once, and what is registered holds as long as the library lives
def _replace_operators() -> object:
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # of a kernel replaced
        for name in _OPERATORS:
            library.impl(name, _replacement(getattr(torch, name)), "CPU")
    return library


def _replacement(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A kernel for one operator. With `out` it is another one, torch's own, which frees the GIL."""

    def own(*args: Tensor, **scalars: float) -> Tensor:
        return function(*args, **scalars, out=args[-1].new_empty(0))

    def operator(*args: Tensor, **scalars: float) -> Tensor:
        *bias, left, right = args
        if {value.dtype for value in args} != {left.dtype} or not is_slow(left.dtype):
            return own(*args, **scalars)
        wide = functools.partial(own, *(value.float() for value in bias), **scalars)
        two_dimensional = left.dim() == right.dim() == 2 and all(value.dim() == 1 for value in bias)
        if two_dimensional and left.numel() and right.numel():
            return _by_rows(wide, left, right)
        return wide(left.float(), right.float()).to(left.dtype)

    return operator


def _by_rows(product: Callable[..., Tensor], left: Tensor, right: Tensor) -> Tensor:
    """[M, K] x [K, N] of slow types, in slices of the rows."""
    out, wide = left.new_empty(len(left), right.shape[1]), right.float()
    for rows in row_slices(len(left), max(right.shape), _BLOCK):
        out[rows] = product(left[rows].float(), wide)
    return out
