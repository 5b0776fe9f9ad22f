"""Every layout of TP x DP x ZeRO gives the losses and gradient norms of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.ranks import RankPool
from tests.support.training import Layout

TRAIN = "tests.support.training:train"
STEPS = 10
LAYOUTS = [(tp, dp, stage) for tp in (1, 2) for dp in (1, 2) for stage in (0, 1, 2, 3)]


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    with RankPool(1) as one, RankPool(2) as two, RankPool(4) as four:
        yield {1: one, 2: two, 4: four}


@pytest.fixture(scope="module")
def one_rank(pools: dict[int, RankPool]) -> dict[str, Any]:
    """One rank, ZeRO 0: plain torch AdamW without any partition."""
    return {
        kind: pools[1].run(TRAIN, kind=kind, layout=Layout(zero_stage=0), steps=STEPS)[0]
        for kind in ("gpt", "bert")
    }


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["gpt", "bert"])
@pytest.mark.parametrize(("tp", "dp", "stage"), LAYOUTS)
def test_fp32_equals_one_rank(
    pools: dict[int, RankPool], one_rank: dict[str, Any], kind: str, tp: int, dp: int, stage: int
) -> None:
    results = pools[tp * dp].run(TRAIN, kind=kind, layout=Layout(tp, stage), steps=STEPS)
    for result in results:  # every rank reports the global loss
        assert result["losses"] == pytest.approx(one_rank[kind]["losses"], rel=1e-5)
        assert result["norms"] == pytest.approx(one_rank[kind]["norms"], rel=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt", "bert"])
@pytest.mark.parametrize(("tp", "stage"), [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)])
def test_bf16_stays_near_fp32(
    pools: dict[int, RankPool], one_rank: dict[str, Any], kind: str, tp: int, stage: int
) -> None:
    """bf16 keeps 8 bits of mantissa (relative rounding 2^-9); means over many tokens stay within 0.5 %."""
    result = pools[2].run(TRAIN, kind=kind, layout=Layout(tp, stage, "bf16"), steps=STEPS)[0]
    assert result["losses"] == pytest.approx(one_rank[kind]["losses"], rel=5e-3)
    assert result["norms"] == pytest.approx(one_rank[kind]["norms"], rel=2e-2)
    assert result["losses"] != one_rank[kind]["losses"]  # it really ran in bf16


@pytest.mark.distributed
def test_dropout_streams(pools: dict[int, RankPool]) -> None:
    """Replicated activations drop alike on tensor ranks; split ones, data ranks and steps all differ."""
    ranks = pools[4].run("tests.support.training:draws", tp=2, step=3)
    later = pools[4].run("tests.support.training:draws", tp=2, step=4)
    replicated = {(r["dp"], r["tp"]): r["replicated"] for r in ranks}
    assert replicated[0, 0] == replicated[0, 1]
    assert replicated[1, 0] == replicated[1, 1]
    assert replicated[0, 0] != replicated[1, 0]
    everything = [r["split"] for r in ranks + later] + [
        replicated[0, 0],
        replicated[1, 0],
        later[0]["replicated"],
    ]
    assert len({tuple(draw) for draw in everything}) == len(everything)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_recompute_under_zero_3(pools: dict[int, RankPool], kind: str) -> None:
    """Parameters must be gathered again for the second forward pass of each layer."""
    recompute = {"training": {"recompute": "full"}}
    plain = pools[2].run(TRAIN, kind=kind, layout=Layout(1, 3), steps=3)[0]
    again = pools[2].run(TRAIN, kind=kind, layout=Layout(1, 3), steps=3, extra=recompute)[0]
    assert again["losses"] == plain["losses"]
    assert again["norms"] == pytest.approx(plain["norms"], rel=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_dropout_keeps_replicas_equal_and_recompute_repeats_it(pools: dict[int, RankPool], kind: str) -> None:
    dropout = {"model": {"hidden_dropout": 0.1, "attention_dropout": 0.1}}
    plain = pools[2].run(TRAIN, kind=kind, layout=Layout(2, 1), steps=3, extra=dropout)
    assert plain[0]["replicated"] == plain[1]["replicated"]
    again = pools[2].run(
        TRAIN, kind=kind, layout=Layout(2, 1), steps=3, extra=dropout | {"training": {"recompute": "full"}}
    )
    assert again[0]["losses"] == plain[0]["losses"]
    assert again[0]["norms"] == pytest.approx(plain[0]["norms"], rel=1e-6)
    without = pools[2].run(TRAIN, kind=kind, layout=Layout(2, 1), steps=3)
    assert without[0]["losses"] != plain[0]["losses"]  # dropout did something
