"""Summing gradients during the backward pass changes when it is done, not what comes out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ranks import RankPool
from tests.support.training import Layout

TRAIN = "tests.support.overlap:train_with_buckets"


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankPool]:
    with RankPool(2) as pool:
        yield pool


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["gpt", pytest.param("bert", marks=pytest.mark.slow)])
def test_small_buckets_are_summed_early_and_all_is_bit_identical(ranks: RankPool, kind: str) -> None:
    layout = Layout(1, 1, "bf16")
    few, many = (ranks.run(TRAIN, kind=kind, layout=layout, elements=size) for size in (2**24, 2**10))
    for whole, divided in zip(few, many, strict=True):
        for found in ("losses", "norms", "replicated"):
            assert divided[found] == whole[found]
        assert len(divided["early"]) == 3 and min(divided["early"]) > 10


def test_without_other_data_ranks_nothing_is_summed(ranks: RankPool) -> None:
    for result in ranks.run(TRAIN, kind="gpt", layout=Layout(2, 1, "bf16"), elements=2**10):
        assert result["early"] == [0, 0, 0]
