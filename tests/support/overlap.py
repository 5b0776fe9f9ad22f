"""Gradients that are summed over ranks while the backward pass goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.training import Layout, train


def train_with_buckets(kind: str, layout: Layout, elements: int) -> dict[str, Any]:
    """`train` for three steps, as on a GPU; "early": the sums begun before each last backward pass ended."""
    from pretrain.parallel import flat_gradients, zero
    from pretrain.parallel.flat_gradients import FlatGradients

    early: list[int] = []
    finish = FlatGradients.finish

    def counted(gradients: FlatGradients) -> None:
        early.append(len(gradients._sums))
        finish(gradients)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat_gradients, "BUCKET_ELEMENTS", elements)
        patch.setattr(FlatGradients, "finish", counted)
        patch.setattr(zero, "_sums_early", lambda device: True)
        return train(kind, layout, 3) | {"early": early}
