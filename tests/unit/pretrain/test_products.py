"""Products in bf16 and fp16 on a CPU without instructions for them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.parallel import products

LOW = [torch.bfloat16, torch.float16]


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_rounded_once(got: Tensor, exact: Tensor) -> None:
    """Half a unit in the last place of the result, and what fp32 sums lose where terms cancel."""
    epsilon = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=0.51 * epsilon, atol=1e-5)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("block", [1, 40, products._BLOCK])
def test_products_are_exact_sums_rounded_once(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int
) -> None:
    """Whatever number of rows is computed at a time, from views as from tensors of their own."""
    monkeypatch.setattr(products, "_BLOCK", block)
    left, right, bias = random(9, 7, dtype=dtype), random(5, 7, dtype=dtype).t(), random(5, dtype=dtype)
    got = products._mm(torch.ops.aten.mm.default, left, right)
    assert got.dtype == dtype
    assert_rounded_once(got, left.double() @ right.double())
    got = products._addmm(torch.ops.aten.addmm.default, bias, left, right, beta=2, alpha=3)
    assert_rounded_once(got, 2 * bias.double() + 3 * (left.double() @ right.double()))
    whole = random(9, 5, dtype=dtype)
    got = products._addmm(torch.ops.aten.addmm.default, whole, left, right)
    assert_rounded_once(got, whole.double() + left.double() @ right.double())


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_empty_products(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    left, right = torch.ones(rows, inner).bfloat16(), torch.ones(inner, columns).bfloat16()
    got = products._mm(torch.ops.aten.mm.default, left, right)
    assert torch.equal(got, torch.zeros(rows, columns).bfloat16())


def test_a_fast_cpu_keeps_the_operators_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_bf16_products", lambda: True)
    monkeypatch.setattr(products.Library, "impl", lambda *_: pytest.fail("an operator is replaced"))
    products.multiply_in_fp32.__wrapped__()


def test_torch_multiplies_in_fp32_where_its_own_products_are_slow() -> None:
    """In a process of its own, as operators are replaced for good."""
    run = [sys.executable, "-W", "error", "-c", f"from {__name__} import replaced; replaced()"]
    done = subprocess.run(
        run, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def replaced() -> None:
    """Forward and backward passes against those in fp64, on a CPU that has no low precision."""
    products.has_bf16_products = lambda: False
    calls: list[str] = []
    for name, rounded in products._ROUNDED.items():
        products._ROUNDED[name] = counted(rounded, name, calls)
    products.multiply_in_fp32()
    products.multiply_in_fp32()
    for dtype in LOW:
        compare(torch.nn.functional.linear, (2, 9, 7), (5, 7), (5,), dtype=dtype)
        compare(torch.matmul, (3, 9, 7), (3, 7, 5), dtype=dtype)
        compare(torch.baddbmm, (3, 9, 5), (3, 9, 7), (3, 7, 5), dtype=dtype)
        compare(torch.nn.functional.scaled_dot_product_attention, *[(1, 2, 9, 8)] * 3, dtype=dtype)
    assert set(calls) == set(products._ROUNDED)
    assert calls.count("mm") == 2 * len(LOW) and calls.count("addmm") == len(LOW)  # of a linear layer
    calls.clear()
    compare(torch.nn.functional.linear, (9, 7), (5, 7), (5,), dtype=torch.float32)
    assert not calls
    with pytest.raises(RuntimeError, match="dtype"):
        torch.addmm(torch.ones(5, dtype=LOW[0]), torch.ones(9, 7), torch.ones(7, 5))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(torch.ones(9, 7, dtype=LOW[0]), torch.ones(6, 5, dtype=LOW[0]))


def counted(rounded: Any, name: str, calls: list[str]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return rounded(*args, **kwargs)

    return call


def compare(function: Any, *shapes: tuple[int, ...], dtype: torch.dtype) -> None:
    """The result and all gradients of a function of some tensors."""
    inputs = [random(*shape, dtype=dtype).requires_grad_() for shape in shapes]
    exact_inputs = [value.detach().double().requires_grad_() for value in inputs]
    result, exact = function(*inputs), function(*exact_inputs)
    gradient = random(*result.shape, dtype=dtype)
    gradients = torch.autograd.grad(result, inputs, gradient)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, gradient.double())
    for got, want in zip((result, *gradients), (exact, *exact_gradients), strict=True):
        assert got.dtype == dtype
        bound = 4 * torch.finfo(dtype).eps  # attention rounds its result before the backward pass
        torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound)
