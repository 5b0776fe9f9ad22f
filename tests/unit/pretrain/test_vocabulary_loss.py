"""The fused projection and loss against torch's own, in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from launch import estimate
from pretrain.config import load_config
from pretrain.models import vocabulary
from pretrain.models.vocabulary import VocabularySlice, vocabulary_loss

POSITIONS, HIDDEN, PADDED, REAL = 37, 16, 128, 100
WHOLE = VocabularySlice(real=REAL)


def inputs(dtype: torch.dtype, width: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias, labels and loss weights (a third of them 0)."""
    generator = torch.Generator().manual_seed(5)
    hidden, weight, bias = (
        (torch.randn(*shape, generator=generator) * width).to(dtype).requires_grad_()
        for shape in ((POSITIONS, HIDDEN), (PADDED, HIDDEN), (PADDED,))
    )
    labels = torch.randint(0, REAL, (POSITIONS,), generator=generator)
    loss_weights = torch.rand(POSITIONS, generator=generator) * (torch.arange(POSITIONS) % 3 > 0)
    return hidden, weight, bias, labels, loss_weights


def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, loss_weights: Tensor, factor: float
) -> list[Tensor]:
    """Loss and the three gradients in fp64."""
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    logits = F.linear(*leaves)[:, :REAL]
    loss = (F.cross_entropy(logits, labels, reduction="none") * loss_weights).sum()
    (loss * factor).backward()
    return [loss.detach(), *(x.grad for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("chunk_rows", [POSITIONS, 5, 1])
@pytest.mark.parametrize("block_rows", [POSITIONS, 3])
def test_fp32_equals_torch(monkeypatch: pytest.MonkeyPatch, chunk_rows: int, block_rows: int) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk_rows * PADDED)
    monkeypatch.setattr(vocabulary, "_CPU_BLOCK_ELEMENTS", block_rows * PADDED)
    hidden, weight, bias, labels, loss_weights = inputs(torch.float32)
    want = reference(hidden, weight, bias, labels, loss_weights, factor=0.3)
    loss = vocabulary_loss(hidden, (weight, bias), labels, loss_weights, WHOLE)
    (loss * 0.3).backward()
    for got, expected in zip((loss, hidden.grad, weight.grad, bias.grad), want, strict=True):
        assert got is not None
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    assert weight.grad is not None and not weight.grad[REAL:].any()


def test_without_weights_and_bias_all_positions_count() -> None:
    hidden, weight, _, labels, _ = inputs(torch.float32)
    loss = vocabulary_loss(hidden.view(1, POSITIONS, HIDDEN), (weight, None), labels[None], None, WHOLE)
    torch.testing.assert_close(
        loss, F.cross_entropy((hidden @ weight.t())[:, :REAL], labels, reduction="sum")
    )


def test_positions_of_weight_0_are_not_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    projected = []
    monkeypatch.setattr(
        vocabulary.F, "linear", lambda x, *a, linear=F.linear: projected.append(len(x)) or linear(x, *a)
    )
    hidden, weight, bias, labels, loss_weights = inputs(torch.float32)
    vocabulary_loss(hidden, (weight, bias), labels, loss_weights, WHOLE)
    assert projected == [int((loss_weights > 0).sum())]


def test_nothing_to_predict_gives_0_and_zero_gradients() -> None:
    hidden, weight, bias, labels, _ = inputs(torch.float32)
    loss = vocabulary_loss(hidden, (weight, bias), labels, torch.zeros(POSITIONS), WHOLE)
    loss.backward()
    assert loss.item() == 0.0
    for gradient in (hidden.grad, weight.grad, bias.grad):
        assert gradient is not None and not gradient.any()


def test_no_gradients_are_made_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("gradients without use")

    monkeypatch.setattr(vocabulary, "_logits_to_gradient", refuse)
    hidden, weight, bias, labels, loss_weights = inputs(torch.float32)
    with torch.no_grad():
        loss = vocabulary_loss(hidden, (weight, bias), labels, loss_weights, WHOLE)
    want = reference(hidden, weight, bias, labels, loss_weights, factor=1.0)[0]
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("chunk_rows", [POSITIONS, 5])
def test_bf16_is_as_accurate_as_megatron_core(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, lone_group: None
) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk_rows * PADDED)
    hidden, weight, bias, labels, loss_weights = inputs(torch.bfloat16)
    want = reference(hidden, weight, bias, labels, loss_weights, factor=0.3)

    def errors(loss: Tensor) -> list[float]:
        (loss * 0.3).backward()
        found = [loss.detach(), *(x.grad for x in (hidden, weight, bias))]
        hidden.grad = weight.grad = bias.grad = None
        return [float((g.double() - w).norm() / w.norm()) for g, w in zip(found, want, strict=True)]

    ours = errors(vocabulary_loss(hidden, (weight, bias), labels, loss_weights, WHOLE))
    logits = F.linear(hidden, weight, bias).clone()
    logits[:, REAL:] = torch.finfo(logits.dtype).min
    theirs = errors((tensor_parallel.vocab_parallel_cross_entropy(logits, labels) * loss_weights).sum())
    for mine, other in zip(ours, theirs, strict=True):
        assert mine <= 1.1 * other + 1e-6


@pytest.fixture
def lone_group() -> object:
    """Process groups of one rank, which megatron-core's loss asks for."""
    from pretrain.parallel.topology import initialize_topology, leave_process_group

    initialize_topology(1)
    yield
    leave_process_group()


@pytest.mark.parametrize("chunk_rows", [512, 100])
@pytest.mark.parametrize("hidden_size", [64, 256])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_peak_of_memory_is_what_headwater_check_says(
    monkeypatch: pytest.MonkeyPatch, precision: str, hidden_size: int, chunk_rows: int
) -> None:
    """Where logits outweigh the weight and where they do not, in one chunk and in several."""
    keys = [f"precision={precision}", f"model.hidden_size={hidden_size}", "model.vocab_size=1024"]
    config = load_config(Path(__file__).parents[3] / "configs" / "gpt" / "tiny.yaml", keys)
    for module, name in ((vocabulary, "CHUNK_ELEMENTS"), (estimate, "LOGITS_AT_A_TIME")):
        monkeypatch.setattr(module, name, 1024 * chunk_rows)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    positions = config.batch.micro_batch_size * config.batch.seq_length
    hidden, weight = (torch.randn(rows, hidden_size).to(dtype).requires_grad_() for rows in (positions, 1024))
    labels = torch.randint(0, 1024, (positions,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        vocabulary_loss(hidden, (weight, None), labels, None, VocabularySlice(real=1024)).backward()
    assert peak_bytes(found) == pytest.approx(estimate.projection_bytes(config), rel=0.2)


def peak_bytes(found: profile) -> int:
    """Most bytes that were allocated at a time while a profile ran."""
    assert found.profiler is not None and found.profiler.kineto_results is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_the_factor_of_the_backward_pass_is_not_rounded_to_bf16() -> None:
    draw = torch.Generator().manual_seed(1)
    hidden, weight = (
        torch.randn(rows, 8, generator=draw).to(torch.bfloat16).requires_grad_() for rows in (6, 32)
    )
    factor = torch.tensor(1 / 3)
    made = []
    for scale in (torch.tensor(1.0), factor):
        loss = vocabulary_loss(hidden, (weight, None), torch.arange(6), None, VocabularySlice(real=32))
        made.append(torch.autograd.grad(loss * scale, (hidden, weight)))
    for whole, scaled in zip(*made, strict=True):
        assert torch.equal(scaled, (whole.double() * factor.double()).to(torch.bfloat16))
