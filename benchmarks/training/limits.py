"""What this machine can do: matrix products at the step's shapes, and copying memory."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.training.work import WORKS, Work, batch
from pretrain.config.derive import VOCAB_MULTIPLE
from pretrain.parallel.device import DTYPES
from pretrain.parallel.products import is_slow


def products(work: Work) -> list[tuple[int, int, int, int]]:
    """(how often, rows, inner, columns) of the matrix products of a step's forward pass.

    Attention's own products are left out of the measured rate. The vocabulary is projected on predicted
    positions only, the least that a step needs.
    """
    tokens, width = work.seq_length * work.batch_size, work.hidden_size
    vocabulary = -(-work.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    predicted = len(batch(work, 0)["masked_positions"]) if work.kind == "bert" else tokens
    wide = work.ffn_hidden_size
    layer = [(width, 3 * width), (width, width), (width, wide), (wide, width)]
    if work.kind == "llama":
        layer[2] = (width, 2 * wide)
    return [(work.num_layers, tokens, *shape) for shape in layer] + [(1, predicted, width, vocabulary)]


def flops(work: Work) -> float:
    """Model FLOPs of one step, forward and backward, with attention (Narayanan et al., 2021, appendix)."""
    linear = sum(6.0 * often * rows * inner * columns for often, rows, inner, columns in products(work))
    attention = 12.0 * work.num_layers * work.hidden_size * work.seq_length**2 * work.batch_size
    return linear + attention


def product_precision(work: Work) -> str:
    """What this CPU multiplies in: fp32 instead of a precision that it has no products in."""
    return "fp32" if is_slow(DTYPES[work.precision]) else work.precision


def product_rate(work: Work, dtype: torch.dtype) -> float:
    """FLOP/s of the step's products one after the other: forward, and both gradients of each."""
    done, seconds = 0.0, 0.0
    for often, rows, inner, columns in products(work):
        x = torch.randn(rows, inner).to(dtype)
        weight = torch.randn(columns, inner).to(dtype)
        output = torch.randn(rows, columns).to(dtype)
        triple = _best_seconds(lambda x=x, w=weight, y=output: (x @ w.T, y @ w, y.T @ x))  # type: ignore[misc]
        seconds += often * triple
        done += 6.0 * often * rows * inner * columns
    return done / seconds


def square_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of one large square product."""
    a = torch.randn(size, size).to(dtype)
    return 2.0 * size**3 / _best_seconds(lambda: a @ a)


def copy_rate(megabytes: int = 512) -> float:
    """Bytes/s of a copy between two large buffers, read and written bytes counted."""
    source = torch.ones(megabytes * 250_000)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / _best_seconds(lambda: target.copy_(source))


def _best_seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Least time of a call: the limit, not the average."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def measure(work: Work) -> dict[str, float]:
    """All limits; the median of three passes over them."""
    dtype = DTYPES[product_precision(work)]
    passes = [
        {"products": product_rate(work, dtype), "square": square_rate(dtype), "copy": copy_rate()}
        for _ in range(3)
    ]
    return {name: statistics.median(p[name] for p in passes) for name in passes[0]} | {"flops": flops(work)}


if __name__ == "__main__":
    print(json.dumps(measure(WORKS[sys.argv[1]])))
