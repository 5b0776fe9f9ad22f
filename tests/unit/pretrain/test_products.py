"""Products in bf16 and fp16 on a CPU without instructions for them; in processes of their own, as torch's
operators are replaced for good."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.parallel import products
from tests.support.training import Layout, train

LOW = (torch.bfloat16, torch.float16)


def alone(function: Any, *args: Any) -> str:
    """Call a function of this module where nothing else runs; what went wrong, "" if nothing did."""
    call = f"from {__name__} import {function.__name__}; {function.__name__}(*{args!r})"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True, text=True)
    assert "Overriding" not in done.stderr
    return f"exit code {done.returncode}: {done.stderr}" if done.returncode else ""


@pytest.mark.parametrize("block", [1, 40, products._BLOCK])
def test_sums_are_exact_and_rounded_once(block: int) -> None:
    """Whatever number of rows is computed at a time."""
    assert alone(compare_products, block) == ""


def test_gradients_and_attention() -> None:
    assert alone(compare_passes) == ""


def test_what_is_no_product_of_slow_types_is_torchs_own() -> None:
    assert alone(look_at_the_rest) == ""


def test_other_threads_go_on() -> None:
    assert alone(count_beside_a_product) == ""


@pytest.mark.parametrize(
    ("slow", "precision"), [(True, "bf16"), (True, "fp16"), (True, "fp32"), (False, "bf16")]
)
def test_a_run_replaces_operators_where_its_type_is_slow(slow: bool, precision: str) -> None:
    assert alone(train_and_look, slow, precision) == ""


def without_instructions(slow: bool = True) -> None:
    """As on a CPU that has none for bf16 and fp16."""
    products.is_slow = lambda dtype: slow and dtype in LOW


def replaced() -> bool:
    return bool(products._replace_operators.cache_info().currsize)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def compare_products(block: int) -> None:
    without_instructions()
    products._BLOCK = block
    products.multiply_in_fp32(LOW[0])
    for dtype in LOW:
        left, right, bias = random(9, 7, dtype=dtype), random(5, 7, dtype=dtype).t(), random(5, dtype=dtype)
        product = left.double() @ right.double()
        check(left @ right, product)
        check(right.t() @ left.t(), product.t())
        check(torch.addmm(bias, left, right, beta=2, alpha=3), 2 * bias.double() + 3 * product)
        whole = random(9, 5, dtype=dtype)
        check(torch.addmm(whole, left, right), whole.double() + product)
        check(torch.addmm(torch.full_like(bias, torch.nan), left, right, beta=0), product)
        many, others = random(3, 9, 7, dtype=dtype), random(3, 7, 5, dtype=dtype)
        check(torch.bmm(many, others), many.double() @ others.double())
        check(torch.baddbmm(bias, many, others), bias.double() + many.double() @ others.double())
        for rows, inner, columns in ((0, 3, 2), (2, 0, 3), (2, 3, 0)):
            empty = torch.ones(rows, inner, dtype=dtype) @ torch.ones(inner, columns, dtype=dtype)
            assert torch.equal(empty, torch.zeros(rows, columns, dtype=dtype))


def check(got: Tensor, exact: Tensor) -> None:
    """Half a unit in the last place of the result, and what fp32 sums lose where terms cancel."""
    torch.testing.assert_close(got.double(), exact, rtol=0.51 * torch.finfo(got.dtype).eps, atol=1e-5)


def compare_passes() -> None:
    from pretrain.models.attention import _attend

    without_instructions()
    products.multiply_in_fp32(LOW[1])
    for dtype in LOW:
        compare(F.linear, (2, 9, 7), (5, 7), (5,), dtype=dtype)
        compare(torch.matmul, (3, 9, 7), (3, 7, 5), dtype=dtype)
        mask = torch.ones(9, 9, dtype=torch.bool).tril()
        added = torch.zeros(9, 9, dtype=dtype).masked_fill(~mask, -torch.inf)
        for manner in ((None, True), (mask, False), (added, False)):
            compare(
                lambda q, k, v, m=manner: _attend(q, k, v, cast(m[0], q), m[1], 0.0),
                *[(1, 2, 9, 8)] * 3,
                dtype=dtype,
            )


def cast(mask: Tensor | None, query: Tensor) -> Tensor | None:
    return mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype)


def compare(function: Any, *shapes: tuple[int, ...], dtype: torch.dtype) -> None:
    """The result and all gradients of a function of some tensors against those in fp64."""
    inputs = [random(*shape, dtype=dtype).requires_grad_() for shape in shapes]
    exact_inputs = [value.detach().double().requires_grad_() for value in inputs]
    result, exact = function(*inputs), function(*exact_inputs)
    gradient = random(*result.shape, dtype=dtype)
    gradients = torch.autograd.grad(result, inputs, gradient)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, gradient.double())
    for got, want in zip((result, *gradients), (exact, *exact_gradients), strict=True):
        assert got.dtype == dtype
        check(got, want)


def look_at_the_rest() -> None:
    without_instructions()
    left, right = random(9, 7, dtype=torch.float32), random(7, 5, dtype=torch.float32)
    before = [left @ right, torch.addmm(right[0], left, right), torch.bmm(left[None], right[None])]
    products.multiply_in_fp32(LOW[0])
    after = [left @ right, torch.addmm(right[0], left, right), torch.bmm(left[None], right[None])]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    with pytest.raises(RuntimeError, match="dtype"):
        torch.addmm(right[0].bfloat16(), left, right)
    for rows in (9, 0):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            left[:rows].bfloat16() @ torch.ones(6, 5).bfloat16()
    with torch.inference_mode():
        assert (left.bfloat16() @ right.bfloat16()).dtype == torch.bfloat16


def count_beside_a_product() -> None:
    """The checkpoint writer, the reader of data and the watchdog are threads."""
    without_instructions()
    products.multiply_in_fp32(LOW[0])
    torch.set_num_threads(1)
    for dtype in (torch.bfloat16, torch.float32):
        left = torch.ones(2048, 2048, dtype=dtype)
        seen, done = [0], threading.Event()

        def count(seen: list[int] = seen, done: threading.Event = done) -> None:
            while not done.wait(0.001):
                seen[0] += 1

        counter = threading.Thread(target=count)
        counter.start()
        while not seen[0]:
            pass
        before = seen[0]
        left @ left  # 17 GFLOP: more than 0.05 s on any core
        during = seen[0] - before
        done.set()
        counter.join()
        assert during > 3, (dtype, during)


def train_and_look(slow: bool, precision: str) -> None:
    without_instructions(slow)
    train("gpt", Layout(precision=precision), 1)
    assert replaced() is (slow and precision != "fp32")
