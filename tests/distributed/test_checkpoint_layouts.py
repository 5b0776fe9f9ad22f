"""A checkpoint of one layout goes on in another as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankPool
from tests.support.training import Layout

TRAIN = "tests.support.training:train"
BEFORE, AFTER = 3, 4
# (ranks, layout): every stage and both TP sizes appear as source and as target.
PLACES = {
    "z0-tp1-dp2": (2, Layout(1, 0)),
    "z1-tp2-dp1": (2, Layout(2, 1)),
    "z2-tp1-dp2": (2, Layout(1, 2)),
    "z3-tp2-dp1": (2, Layout(2, 3)),
    "z3-tp1-dp2": (2, Layout(1, 3)),
    "z1-tp1-dp1": (1, Layout(1, 1)),
}


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    with RankPool(1) as one, RankPool(2) as two:
        yield {1: one, 2: two}


@pytest.fixture(scope="module")
def undisturbed(pools: dict[int, RankPool]) -> dict[str, Any]:
    return {
        kind: pools[1].run(TRAIN, kind=kind, layout=Layout(zero_stage=0), steps=BEFORE + AFTER)[0]
        for kind in ("gpt", "bert")
    }


@pytest.fixture(scope="module")
def saved(pools: dict[int, RankPool], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """One checkpoint after BEFORE steps from every place."""
    directories = {}
    for name, (ranks, layout) in PLACES.items():
        for kind in ("gpt", "bert"):
            run_dir = str(tmp_path_factory.mktemp(f"{kind}-{name}"))
            directories[kind, name] = pools[ranks].run(
                TRAIN, kind=kind, layout=layout, steps=BEFORE, save=run_dir
            )[0]["directory"]
    return directories


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["gpt", pytest.param("bert", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("source", PLACES)
def test_any_layout_to_any_other(
    pools: dict[int, RankPool],
    undisturbed: dict[str, Any],
    saved: dict[tuple[str, str], str],
    kind: str,
    source: str,
    target: str,
) -> None:
    ranks, layout = PLACES[target]
    result = pools[ranks].run(TRAIN, kind=kind, layout=layout, steps=AFTER, load=saved[kind, source])[0]
    assert result["losses"] == pytest.approx(undisturbed[kind]["losses"][BEFORE:], rel=1e-5)
    assert result["norms"] == pytest.approx(undisturbed[kind]["norms"][BEFORE:], rel=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("name", PLACES)
def test_same_layout_is_bit_exact(
    pools: dict[int, RankPool], saved: dict[tuple[str, str], str], name: str
) -> None:
    ranks, layout = PLACES[name]
    whole = pools[ranks].run(TRAIN, kind="gpt", layout=layout, steps=BEFORE + AFTER)[0]
    resumed = pools[ranks].run(TRAIN, kind="gpt", layout=layout, steps=AFTER, load=saved["gpt", name])[0]
    assert resumed["losses"] == whole["losses"][BEFORE:]
    assert resumed["norms"] == whole["norms"][BEFORE:]


@pytest.mark.distributed
def test_bf16_resumes_from_fp32_master_weights(pools: dict[int, RankPool], tmp_path: Path) -> None:
    layout = Layout(2, 1, "bf16")
    whole = pools[2].run(TRAIN, kind="gpt", layout=layout, steps=BEFORE + AFTER)[0]
    directory = pools[2].run(TRAIN, kind="gpt", layout=layout, steps=BEFORE, save=str(tmp_path))[0][
        "directory"
    ]
    resumed = pools[2].run(TRAIN, kind="gpt", layout=layout, steps=AFTER, load=directory)[0]
    assert resumed["losses"] == whole["losses"][BEFORE:]
