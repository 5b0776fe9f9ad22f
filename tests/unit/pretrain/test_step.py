from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretrain import step
from pretrain.step import TrainingError, train_step


class Model:
    def loss_weights(self):
        return {"first": 1.0, "second": 1.0}

    def target_counts(self, batch):
        return {name: float(batch[name].sum()) for name in self.loss_weights()}


class Engine:
    def __init__(self):
        self.model = Model()
        self.topology = SimpleNamespace(device=torch.device("cpu"), data_parallel_group=None)
        self.steps = 0

    def begin_step(self, micro_batches):
        pass

    def forward(self, batch):
        return {name: 3.0 * batch[name].sum() for name in ("first", "second")}

    def backward(self, loss):
        pass

    def step(self, lr):
        self.steps += 1
        return SimpleNamespace(grad_norm=1.0, applied=True, overflow=False)


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(step.dist, "all_reduce", lambda *_, **__: None)
    return Engine()


def batch(first, second):
    return {"first": np.array(first, dtype=np.float32), "second": np.array(second, dtype=np.float32)}


def test_a_step_without_any_target_is_an_error_before_the_update(engine):
    with pytest.raises(TrainingError, match="no target.*on_bad_block"):
        train_step(engine, [batch([0, 0], [0]), batch([0], [0])], lr=1.0)
    assert not engine.steps


def test_a_loss_or_a_micro_batch_may_have_no_target(engine):
    found = train_step(engine, [batch([0, 0], [0]), batch([1, 1], [0])], lr=1.0)
    assert found.losses == {"loss": 3.0, "first": 3.0, "second": 0.0} and engine.steps == 1


def test_the_first_micro_batch_has_a_loss_of_its_own(engine):
    """Over its own targets; 3.0 for each with one, of two losses, and the second has none here."""
    engine.forward = lambda batch: {name: (batch[name] * batch[name]).sum() for name in ("first", "second")}
    found = train_step(engine, [batch([2, 4], [0]), batch([9, 9], [5])], lr=1.0)
    assert found.first_loss() == (2 * 2 + 4 * 4) / (2 + 4)
    assert found.losses["loss"] == (2 * 2 + 4 * 4 + 2 * 81) / (2 + 4 + 2 * 9) + 25 / 5


def test_a_gpu_gets_its_batch_from_pinned_memory_and_counts_are_made_on_the_host(monkeypatch):
    pinned, moved = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, *to, **how: moved.append((tensor, to, how)) or tensor
    )
    batch = {"tokens": np.arange(6).reshape(2, 3)}
    for name in ("cuda", "cpu"):
        found = step.to_device(batch, torch.device(name))["tokens"]
        assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert moved[-1][1:] == ((torch.device(name),), {"non_blocking": True})
    assert len(pinned) == 1 and moved[0][0] is pinned[0]


def test_targets_are_counted_on_the_host(engine, monkeypatch):
    engine.topology.device = torch.device("meta")  # a value that is read there is an error
    engine.model.loss_weights = lambda: {"first": 1.0}
    seen = []
    count = engine.model.target_counts
    engine.model.target_counts = lambda batch: seen.append(batch["first"].device.type) or count(batch)
    monkeypatch.setattr(step, "_summed", lambda counts, topology: counts)
    monkeypatch.setattr(step, "_mean_losses", lambda *_: {"loss": 3.0})
    found = train_step(engine, [batch([1, 1], [1])], lr=1.0)
    with pytest.raises(RuntimeError, match="meta"):
        found.first_loss()
    assert seen == ["cpu", "cpu"]
