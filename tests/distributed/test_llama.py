"""Llama style (rope, RMSNorm, SwiGLU, grouped queries, untied) trains the same on every layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.ranks import RankPool
from tests.support.training import Layout

TRAIN = "tests.support.training:train"
STEPS, BEFORE = 6, 2


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    with RankPool(1) as one, RankPool(2) as two:
        yield {1: one, 2: two}


@pytest.fixture(scope="module")
def one_rank(pools: dict[int, RankPool]) -> dict[str, Any]:
    result: dict[str, Any] = pools[1].run(TRAIN, kind="llama", layout=Layout(zero_stage=0), steps=STEPS)[0]
    return result


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("tp", [1, 2])
def test_fp32_equals_one_rank(
    pools: dict[int, RankPool], one_rank: dict[str, Any], tp: int, stage: int
) -> None:
    for result in pools[2].run(TRAIN, kind="llama", layout=Layout(tp, stage), steps=STEPS):
        assert result["losses"] == pytest.approx(one_rank["losses"], rel=1e-5)
        assert result["norms"] == pytest.approx(one_rank["norms"], rel=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(("tp", "stage"), [(1, 1), (2, 1), (2, 3)])
def test_bf16_stays_near_fp32(
    pools: dict[int, RankPool], one_rank: dict[str, Any], tp: int, stage: int
) -> None:
    """The bound of test_layouts.py, for the same reason."""
    result = pools[2].run(TRAIN, kind="llama", layout=Layout(tp, stage, "bf16"), steps=STEPS)[0]
    assert result["losses"] == pytest.approx(one_rank["losses"], rel=5e-3)
    assert result["norms"] == pytest.approx(one_rank["norms"], rel=2e-2)
    assert result["losses"] != one_rank["losses"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1, Layout(1, 1)), (2, Layout(2, 3))),
        ((2, Layout(2, 1)), (1, Layout(1, 1))),
        ((2, Layout(2, 3)), (2, Layout(1, 2))),
        ((2, Layout(1, 0)), (2, Layout(2, 1))),
    ],
    ids=["tp1-z1--tp2-z3", "tp2-z1--tp1-z1", "tp2-z3--tp1-z2", "tp1-z0--tp2-z1"],
)
def test_checkpoints_change_tensor_parallelism(
    pools: dict[int, RankPool], one_rank: dict[str, Any], tmp_path: Any, source: Any, target: Any
) -> None:
    """Gate and up stand one below the other in fc1: each half is split for itself, moments included."""
    ranks, layout = source
    saved = pools[ranks].run(TRAIN, kind="llama", layout=layout, steps=BEFORE, save=str(tmp_path))[0]
    ranks, layout = target
    result = pools[ranks].run(
        TRAIN, kind="llama", layout=layout, steps=STEPS - BEFORE, load=saved["directory"]
    )[0]
    assert result["losses"] == pytest.approx(one_rank["losses"][BEFORE:], rel=1e-5)
    assert result["norms"] == pytest.approx(one_rank["norms"][BEFORE:], rel=1e-5)


INITIAL = "tests.distributed.test_llama:initial"


def initial(tp: int) -> dict[str, tuple[float, Any]]:
    """Per parameter: the standard deviation and the merged whole initial weights."""
    import torch
    import torch.distributed as dist

    from pretrain.checkpoint.layout import parameter_layouts
    from pretrain.models import build_model
    from pretrain.parallel.rng import seed_initialization
    from pretrain.parallel.topology import initialize_topology
    from tests.support.training import tiny_config

    topology = initialize_topology(tp)
    config = tiny_config("llama", Layout(tp))
    seed_initialization(config.seed)
    model = build_model(config)
    layouts = parameter_layouts(model, tp)
    whole = {}
    for name, parameter in model.named_parameters():
        shards = [torch.empty_like(parameter.detach()) for _ in range(tp)]
        dist.all_gather(shards, parameter.detach().contiguous(), group=topology.tensor_model_parallel_group)
        full = layouts[name].merge(shards)
        whole[name] = (float(full.std()), full.numpy())
    return whole


@pytest.mark.distributed
def test_initial_weights_do_not_depend_on_tensor_parallelism(pools: dict[int, RankPool]) -> None:
    """Bit for bit; and what writes into the residual stream is scaled by 1 / sqrt(2 layers), as in GPT-2."""
    one, two = (pools[tp].run(INITIAL, tp=tp)[0] for tp in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name][1] == two[name][1]).all(), name
    for name, (std, _) in one.items():
        if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            assert std == pytest.approx(0.02 / 2.0, rel=0.05), name
        elif name.endswith(("linear_qkv.weight", "linear_fc1.weight", "word_embeddings.weight")):
            assert std == pytest.approx(0.02, rel=0.05), name
    assert one["decoder.layers.0.mlp.linear_fc1.weight"][1].shape == (2 * 128, 64)
    assert one["decoder.layers.0.self_attention.linear_qkv.weight"][1].shape == ((4 + 2 * 2) * 16, 64)
