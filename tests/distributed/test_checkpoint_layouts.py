"""A checkpoint of one layout goes on in another as if nothing had happened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.support.ranks import RankPool
from tests.support.training import Layout, micro_batches, tiny_config

TRAIN = "tests.support.training:train"
BEFORE, AFTER = 3, 4
# (ranks, layout): every stage, both TP sizes and TP x DP appear as source and as target.
PLACES = {
    "z0-tp1-dp2": (2, Layout(1, 0)),
    "z1-tp2-dp1": (2, Layout(2, 1)),
    "z2-tp1-dp2": (2, Layout(1, 2)),
    "z3-tp2-dp1": (2, Layout(2, 3)),
    "z3-tp1-dp2": (2, Layout(1, 3)),
    "z1-tp1-dp1": (1, Layout(1, 1)),
    "z2-tp2-dp2": (4, Layout(2, 2)),
    "z3-tp2-dp2": (4, Layout(2, 3)),
}
# 24 pairs: each place is source and target of three others, of two in `make test`. The whole table of 144 is
# one command, `python -m benchmarks.checkpoint_layouts`; docs/checkpoint-layouts-measured.md has it.
PAIRS = [
    (source, list(PLACES)[(number + distance) % len(PLACES)])
    for number, source in enumerate(PLACES)
    for distance in (1, 3, 6)
]


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    with RankPool(1) as one, RankPool(2) as two, RankPool(4) as four:
        yield {1: one, 2: two, 4: four}


@pytest.fixture(scope="module")
def undisturbed(pools: dict[int, RankPool]) -> dict[str, Any]:
    """By kind: the run that never stopped, when it is first asked for."""

    class Undisturbed(dict[str, Any]):
        def __missing__(self, kind: str) -> Any:
            layout = Layout(zero_stage=0)
            self[kind] = pools[1].run(TRAIN, kind=kind, layout=layout, steps=BEFORE + AFTER)[0]
            return self[kind]

    return Undisturbed()


@pytest.fixture(scope="module")
def saved(pools: dict[int, RankPool], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """By (kind, place): a checkpoint after BEFORE steps, made when it is first asked for."""

    class Saved(dict[tuple[str, str], str]):
        def __missing__(self, key: tuple[str, str]) -> str:
            kind, (ranks, layout) = key[0], PLACES[key[1]]
            run_dir = str(tmp_path_factory.mktemp("-".join(key)))
            (result, *_) = pools[ranks].run(TRAIN, kind=kind, layout=layout, steps=BEFORE, save=run_dir)
            self[key] = str(result["directory"])
            return self[key]

    return Saved()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [
        *(("gpt", *pair) for number, pair in enumerate(PAIRS) if number % 3 < 2),
        *(pytest.param("gpt", *pair, marks=pytest.mark.slow) for pair in PAIRS[2::3]),
        *(pytest.param("bert", *pair, marks=pytest.mark.slow) for pair in PAIRS[::3]),
    ],
)
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
@pytest.mark.parametrize("name", [name for name in PLACES if name != "z2-tp2-dp2"])
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


def copy_late(layout: Layout, load: str | None) -> bool:
    """On every rank: take a snapshot, train or load, copy then; whether the copy is the state at the save."""
    import torch

    from pretrain.checkpoint import load_checkpoint
    from pretrain.checkpoint.host_copy import HostMemory
    from pretrain.checkpoint.snapshot import take_snapshot
    from pretrain.models import build_model
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from pretrain.step import train_step

    config, topology = tiny_config("gpt", layout), initialize_topology(layout.tp)
    model = build_model(config)
    engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)

    def train(step: int) -> None:
        train_step(engine, micro_batches("gpt", step, topology.data_parallel_rank, 2 // layout.tp), 1e-3)

    train(0)
    copy = take_snapshot(engine, config, {"step": 1}, {}, HostMemory()).state
    sources = dict(copy._sources or {})
    before = {name: source.clone() for name, source in sources.items()}
    if load:
        load_checkpoint(engine, Path(load))
    else:
        train(1)
    copy.make()
    engine.close()
    changed = [name for name, source in sources.items() if not torch.equal(source, before[name])]
    assert len(changed) >= (1 if load else 3)  # a load replaces the moments, it does not write into them
    return all(torch.equal(copy.tensors[name], before[name]) for name in before)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "loads"),
    [
        (Layout(1, 0), False),
        (Layout(1, 2), False),
        (Layout(1, 3), False),
        (Layout(1, 3), True),
        (Layout(2, 1, "bf16"), False),
    ],
)
def test_what_changes_the_state_waits_for_its_copy(
    pools: dict[int, RankPool], saved: dict[tuple[str, str], str], layout: Layout, loads: bool
) -> None:
    load = saved["gpt", "z3-tp1-dp2"] if loads else None
    assert pools[2].run(f"{__name__}:copy_late", layout=layout, load=load) == [True, True]


def load_with_a_fault(directory: str) -> str:
    """On every rank: load, with a bf16 copy of the weights that is wrong; what the load says."""
    from pretrain.checkpoint import CheckpointError, load_checkpoint
    from pretrain.checkpoint.fragments import RankState
    from pretrain.models import build_model
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine

    config = tiny_config("gpt", Layout(2, 1, "bf16"))
    topology = initialize_topology(2)
    model = build_model(config)
    engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    right = RankState.refresh_model
    try:
        with patch.object(RankState, "refresh_model", lambda self, name, shard: right(self, name, 3 * shard)):
            load_checkpoint(engine, Path(directory))
    except CheckpointError as error:
        return str(error)
    finally:
        engine.close()
    return "loaded"


@pytest.mark.distributed
def test_a_model_that_computes_something_else_is_refused(
    pools: dict[int, RankPool], saved: dict[tuple[str, str], str]
) -> None:
    """The fp32 weights arrive bit for bit, so that only the probe loss shows it."""
    directory = saved["gpt", "z1-tp1-dp1"]
    told = pools[2].run("tests.distributed.test_checkpoint_layouts:load_with_a_fault", directory=directory)
    for text in told:
        assert re.search(r"step-00000003: the probe loss was \d\.\d+ at the save and is ", text), text
