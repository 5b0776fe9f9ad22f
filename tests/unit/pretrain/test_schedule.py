"""Learning rates, against torch's own schedulers and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.config import JobConfig, load_config
from pretrain.schedule import learning_rate

TINY = Path(__file__).resolve().parents[3] / "configs" / "gpt" / "tiny.yaml"


def config(*overrides: str) -> JobConfig:
    base = [
        "optimizer.lr=0.1",
        "optimizer.min_lr=0.01",
        "training.train_steps=50",
        "schedule.lr_warmup_steps=0",
    ]
    return load_config(TINY, base + list(overrides))


def torch_rates(make_scheduler: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make_scheduler(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(50):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_equals_torch() -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.01))
    assert [learning_rate(config("schedule.kind=cosine"), s) for s in range(50)] == pytest.approx(expected)


def test_linear_equals_torch() -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, 50))
    assert [learning_rate(config("schedule.kind=linear"), s) for s in range(50)] == pytest.approx(expected)


def test_warmup_reaches_the_peak_and_never_starts_at_zero() -> None:
    warm = config("schedule.kind=linear", "schedule.lr_warmup_steps=10")
    rates = [learning_rate(warm, step) for step in range(12)]
    assert rates[:11] == pytest.approx([0.1 * (step + 1) / 10 for step in range(10)] + [0.1])
    assert rates[11] < 0.1


def test_wsd_is_flat_then_falls_to_the_floor() -> None:
    wsd = config("schedule.kind=wsd", "schedule.lr_warmup_steps=5", "schedule.wsd_decay_steps=10")
    assert {learning_rate(wsd, step) for step in range(5, 41)} == {0.1}
    assert learning_rate(wsd, 45) == pytest.approx((0.1 + 0.01) / 2)
    assert learning_rate(wsd, 50) == pytest.approx(0.01)


def test_constant() -> None:
    assert {learning_rate(config("schedule.kind=constant"), step) for step in range(50)} == {0.1}
