"""fp16: an overflow on one rank skips the update on all, lowers the scale, and does not stop the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankPool

OVERFLOW = "tests.distributed.test_loss_scale:overflow"
PLACES = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]


def overflow(tp: int, stage: int, save: str, offload: bool = False) -> dict[str, Any]:
    """Four steps of which the middle two overflow on the last rank only, a checkpoint, and a fresh engine."""
    import torch

    from pretrain.bad_steps import BadSteps
    from pretrain.checkpoint import load_checkpoint, save_checkpoint
    from pretrain.checkpoint.fragments import RankState
    from pretrain.models import build_model
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.rng import seed_initialization
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from pretrain.step import train_step
    from tests.support.training import Layout, micro_batches, tiny_config

    extra: dict[str, Any] = {"fp16": {"initial_scale_power": 10}}
    if offload:
        extra["zero_optimization"] = {"offload_optimizer": {"device": "cpu"}}
    config = tiny_config("gpt", Layout(tp, stage, "fp16"), run_dir=save, deepspeed=extra)
    topology = initialize_topology(tp)

    def engine() -> Engine:
        seed_initialization(config.seed)
        model = build_model(config)
        return Engine(config, model, build_optimizer(model, config.optimizer), topology)

    first = engine()
    step = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        spoilt = step in (1, 2) and topology.rank == topology.world_size - 1
        return torch.full_like(gradient, float("inf")) if spoilt else gradient

    name, parameter = next((n, p) for n, p in first.model.named_parameters() if n.endswith("fc1.weight"))
    parameter.register_hook(spoil)
    results, weights, bad_steps = [], [], BadSteps(config.bad_steps, {})
    for step in range(4):
        batches = micro_batches("gpt", step, topology.data_parallel_rank, topology.data_parallel_size)
        result = train_step(first, batches, lr=1e-3)
        results.append(
            (result.losses["loss"], result.applied, result.overflow, bad_steps.count(step, result))
        )
        weights.append([flat.clone() for flat in RankState(first).flats])
    state, metrics = first.loss_scale.state(), first.loss_scale.metrics()
    directory = save_checkpoint(first, config, {"step": 4}, {})
    first.close()
    second = engine()
    load_checkpoint(second, directory)
    restored = second.loss_scale.state()
    moved = [
        any(not torch.equal(a, b) for a, b in zip(weights[i], weights[i + 1], strict=True)) for i in range(3)
    ]
    second.close()
    return {
        "results": results,
        "moved": moved,
        "state": state,
        "metrics": metrics,
        "restored": restored,
        "offloaded": bool(offload),
    }


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks


def check(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert [applied for _, applied, _, _ in rank["results"]] == [True, False, False, True]
        assert [seen for _, _, seen, _ in rank["results"]] == [False, True, True, False]
        assert not any(reason for *_, reason in rank["results"]), "an overflow is no bad step"
        assert rank["moved"] == [False, False, True]
        # DeepSpeed's hysteresis of 2: the first overflow is forgiven, the second halves the scale.
        assert rank["metrics"] == {"loss_scale": 512.0, "overflow_steps": 2.0}
        assert rank["restored"] == rank["state"] == ranks[0]["state"]
        assert rank["results"] == ranks[0]["results"]


@pytest.mark.distributed
@pytest.mark.parametrize(("tp", "stage"), PLACES[1:3])
def test_overflow_on_one_rank(pool: RankPool, tmp_path: Path, tp: int, stage: int) -> None:
    check(pool.run(OVERFLOW, tp=tp, stage=stage, save=str(tmp_path)))


def what_an_engine_says(stage: int) -> tuple[str, bool]:
    """What the set-up of a bf16 engine prints, and whether DeepSpeed's warnings would be seen."""
    import contextlib
    import io
    import logging

    from pretrain.models import build_model
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from tests.support.training import Layout, tiny_config

    config = tiny_config("gpt", Layout(1, stage, "bf16"))
    topology = initialize_topology(1)
    model = build_model(config)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    engine.close()
    return said.getvalue(), logging.getLogger("DeepSpeed").isEnabledFor(logging.WARNING)


@pytest.mark.distributed
def test_an_engine_says_nothing_but_warnings(pool: RankPool) -> None:
    for rank in pool.run("tests.distributed.test_loss_scale:what_an_engine_says", stage=1):
        assert rank == ("", True)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(("tp", "stage"), PLACES)
def test_overflow_on_one_rank_everywhere(
    pool: RankPool, tmp_path: Path, tp: int, stage: int, offload: bool
) -> None:
    check(pool.run(OVERFLOW, tp=tp, stage=stage, save=str(tmp_path), offload=offload))


def without_step_one(stage: int, precision: str, discard: bool) -> list[Any]:
    """Weights after steps 0 and 2 with an offloaded optimizer; step 1 is left out or never happens."""
    from pretrain.checkpoint.fragments import RankState
    from pretrain.models import build_model
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.rng import seed_initialization
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from pretrain.step import train_step
    from tests.support.training import Layout, micro_batches, tiny_config

    zero = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    config = tiny_config("gpt", Layout(1, stage, precision), deepspeed=zero)
    topology = initialize_topology(1)
    seed_initialization(config.seed)
    model = build_model(config)
    engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    for step in (0, 1, 2) if discard else (0, 2):
        batches = micro_batches("gpt", step, topology.data_parallel_rank, topology.data_parallel_size)
        train_step(engine, batches, 1e-3, accept=lambda loss, step=step: step != 1)
    flats = [flat.clone() for flat in RankState(engine).flats]
    engine.close()
    return flats


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (2, "bf16"), (1, "bf16"), (3, "bf16")])
def test_a_discarded_step_leaves_no_gradients_with_offload(
    pool: RankPool, stage: int, precision: str
) -> None:
    function = "tests.distributed.test_loss_scale:without_step_one"
    with_it, without = (
        pool.run(function, stage=stage, precision=precision, discard=discard)[0] for discard in (True, False)
    )
    assert all(bool((a == b).all()) for a, b in zip(with_it, without, strict=True))
