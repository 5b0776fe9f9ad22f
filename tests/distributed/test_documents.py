"""Packed documents: logits, losses and gradients are those of each document alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.ranks import RankPool

COMPARE = "tests.distributed.test_documents:compare"


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks


def compare(kind: str, tp: int, recompute: str) -> dict[str, float]:
    """On one rank: the largest differences between a packed batch and its documents one by one."""
    import numpy as np
    import torch

    from pretrain.data.objectives import DocumentRows, document_lm
    from pretrain.models import build_model
    from pretrain.parallel.rng import seed_initialization
    from pretrain.parallel.topology import initialize_topology
    from pretrain.step import to_device
    from tests.support.training import VOCAB_SIZE, Layout, tiny_config

    initialize_topology(tp)
    seed_initialization(7)
    config: Any = tiny_config(kind, Layout(tp), training={"recompute": recompute})
    model: Any = build_model(config)
    rng = np.random.default_rng(5)
    lengths = [[13, 1, 40, 10], [64], [7, 57], [30, 20]]  # the last row is padded
    documents = [[rng.integers(6, VOCAB_SIZE, n + 1) for n in row] for row in lengths]
    tokens, labels = np.zeros((2, 4, 64), dtype=np.int64)
    begins, within = np.zeros((2, 4, 64), dtype=np.bool_)
    for row, some in enumerate(documents):
        at = 0
        for document in some:
            end = at + len(document) - 1
            tokens[row, at:end], labels[row, at:end] = document[:-1], document[1:]
            begins[row, at], within[row, at:end], at = True, True, end
        if at < 64:
            begins[row, at] = True
    rows = DocumentRows(tokens, labels, begins, within)
    batch = to_device(document_lm(rows, attention=True, positions=True, within=True), torch.device("cpu"))
    # Anything in the padding, and in another document, must not matter.
    batch["tokens"][3, 50:] = 999
    inputs = ("tokens", "position_ids", "document_ids")
    logits = model(**{name: batch[name] for name in inputs})["logits"]
    loss = model(**batch)["lm_loss"]
    loss.backward()
    packed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    apart, total = 0.0, torch.zeros(())
    for row, some in enumerate(documents):
        at = 0
        for document in some:
            alone = torch.from_numpy(document)[None]
            end = at + len(document) - 1
            expected = model(alone[:, :-1])["logits"][0]
            apart = max(apart, float((logits[row, at:end] - expected).abs().max().detach()))
            total = total + model(alone[:, :-1], alone[:, 1:])["lm_loss"]
            at = end
    total.backward()
    gradients = max(
        float((a - b.grad).abs().max() / b.grad.abs().max())
        for a, b in zip(packed, model.parameters(), strict=True)
    )
    with torch.no_grad():
        mixed = model(batch["tokens"], position_ids=batch["position_ids"])["logits"]
    return {
        "logits": apart,
        "loss": abs(float(loss) - float(total)) / float(total),
        "gradients": gradients,
        "without": float((mixed[0, 14:54] - logits[0, 14:54]).abs().max()),
    }


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "tp", "recompute"),
    [("gpt", 1, "none"), ("gpt", 2, "none"), ("gpt", 2, "full"), ("llama", 2, "none"), ("llama", 2, "full")],
)
def test_packed_documents_do_not_see_each_other(pool: RankPool, kind: str, tp: int, recompute: str) -> None:
    for result in pool.run(COMPARE, kind=kind, tp=tp, recompute=recompute):
        assert result["logits"] < 1e-5
        assert result["loss"] < 1e-6
        assert result["gradients"] < 1e-4
        assert result["without"] > 1e-3, "the test would not notice a missing mask"
