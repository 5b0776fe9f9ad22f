"""Matrix products in bf16 and fp16 on CPUs that have no instructions for them.

There torch multiplies in a plain loop on one core, a hundred times slower than in fp32 (benchmarks/LOG.md).
The product of two bf16 or fp16 values is exact in fp32, so sums in fp32 that are rounded once at the end are
what the instructions of other CPUs and of GPUs compute, but for the order of the sums.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_BLOCK = 2**23
"""Elements of a left side or a result that are there in fp32 at a time, 32 MB."""

Library: Any = torch.library.Library
Kernel = Callable[..., Any]
"""Takes the dispatch keys and then what the operator takes."""


def has_bf16_products() -> bool:
    """Whether torch has fast products in bf16 on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache  # once in a process, and what is registered holds as long as the library lives
def multiply_in_fp32() -> object:
    """Let torch compute products in bf16 and fp16, those of autograd too, in fp32 and round them.

    Nothing changes where products in bf16 are fast: the detour takes 10 us, of products in other types too.
    """
    library = Library("aten", "IMPL")
    for name, rounded in () if has_bf16_products() else _ROUNDED.items():
        kernel = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")  # of a kernel replaced
            library.impl(name, _for_low_precision(kernel, rounded), "CPU", with_keyset=True)
    return library


def _for_low_precision(kernel: Kernel, rounded: Callable[..., Any]) -> Kernel:
    def operator(keys: Any, *args: Any, **kwargs: Any) -> Any:
        (dtype, *others) = {value.dtype for value in args[:3]}  # of all factors
        if others or dtype not in (torch.bfloat16, torch.float16):
            return kernel(keys, *args, **kwargs)
        return rounded(functools.partial(kernel, keys), *args, **kwargs)

    return operator


def _mm(kernel: Kernel, left: Tensor, right: Tensor) -> Tensor:
    """[M, K] x [K, N], some rows at a time."""
    wide = right.float()
    out = left.new_empty(left.shape[0], right.shape[1])
    height = max(1, _BLOCK // max(1, *right.shape))
    for row in range(0, len(left), height):
        rows = slice(row, row + height)
        out[rows] = kernel(left[rows].float(), wide)
    return out


def _addmm(kernel: Kernel, bias: Tensor, left: Tensor, right: Tensor, **factors: Any) -> Tensor:
    """`_mm` plus a bias [N]; or plus anything else that torch takes, in one piece."""
    if bias.dim() != 1:
        whole: Tensor = _whole(kernel, bias, left, right, **factors)
        return whole
    wide_bias = bias.float()
    return _mm(lambda rows, wide: kernel(wide_bias, rows, wide, **factors), left, right)


def _whole(kernel: Kernel, *args: Any, **kwargs: Any) -> Any:
    """Everything in fp32 at once."""
    dtype = args[0].dtype
    wide = [_widened(value) for value in args]
    made = kernel(*wide, **{key: _widened(value) for key, value in kwargs.items()})
    return made.to(dtype) if isinstance(made, Tensor) else tuple(each.to(dtype) for each in made)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


_ROUNDED: dict[str, Callable[..., Any]] = {
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _whole,
    "baddbmm": _whole,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _whole,
}
"""What the passes of a model come down to. All that these return has the type of the first argument."""
