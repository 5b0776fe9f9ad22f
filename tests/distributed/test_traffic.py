"""The traffic that `headwater scaling` computes is what ranks hand to torch's collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from launch.traffic import step_traffic
from pretrain.config.load import parse_section
from pretrain.parity.layouts import Layout as Laid
from pretrain.parity.layouts import laid_out
from tests.support.ranks import RankPool
from tests.support.training import Layout, tiny_config

KEEP_NOTHING = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
}
"""So that stage 3 treats this small model as it treats one that does not fit."""
OPERATIONS = {"allreduce": "all-reduce", "allgather": "all-gather", "reduce_scatter": "reduce-scatter"}
LAYOUTS = [
    Laid(tp=1, dp=2, zero=0),
    Laid(tp=1, dp=2, zero=1, precision="bf16", accumulation=4),
    Laid(tp=1, dp=2, zero=2, precision="bf16", accumulation=4),
    Laid(tp=1, dp=2, zero=3, precision="bf16", accumulation=4),
    Laid(tp=1, dp=2, zero=3, precision="bf16", recompute="full"),
    Laid(tp=2, dp=1, zero=1, precision="bf16", accumulation=4),
    Laid(tp=2, dp=1, zero=1, recompute="full"),
    Laid(tp=2, dp=1, zero=1, precision="bf16", sequence_parallel=True),
    Laid(tp=2, dp=1, zero=1, precision="bf16", sequence_parallel=True, recompute="full"),
]


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankPool]:
    with RankPool(2) as pool:
        yield pool


def configured(kind: str, layout: Laid) -> Any:
    config = laid_out(tiny_config(kind, Layout(), model={"hidden_size": 128}), layout)
    if layout.zero < 3:
        return config
    zero = {**config.deepspeed.get("zero_optimization", {}), **KEEP_NOTHING}
    data = config.model_dump(mode="json") | {"deepspeed": config.deepspeed | {"zero_optimization": zero}}
    return parse_section(type(config), data, "test")


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *(("gpt", LAYOUTS[number]) for number in (0, 1, 2, 3, 5, 7)),
        ("llama", LAYOUTS[4]),
        ("llama", LAYOUTS[8]),
        ("bert", LAYOUTS[7]),
    ],
    ids=str,
)
def test_bytes_are_those_that_ranks_exchange(ranks: RankPool, kind: str, layout: Laid) -> None:
    config = configured(kind, layout)
    seen = ranks.run("tests.support.traffic:traffic_of_a_step", config=config)[0]
    expected: Counter[str] = Counter()
    for line in step_traffic(config, 2):
        expected[line.operation] += round(line.payload_bytes)
    for name, operation in OPERATIONS.items():
        # Left out: norms, counts, losses; with sequence parallelism the gradients of what is not split.
        assert seen[name, 2] == pytest.approx(expected[operation], rel=0.02, abs=25_000), operation


def test_gradients_travel_in_the_type_that_the_user_chooses(ranks: RankPool) -> None:
    """In fp32 we sum them where they are; in another type DeepSpeed does."""
    config = configured("gpt", Laid(tp=1, dp=2, zero=1, precision="bf16"))
    halved = config.model_copy(update={"deepspeed": {"communication_data_type": "bf16"}})
    task = "tests.support.traffic:traffic_of_a_step"
    in_fp32, in_bf16 = (ranks.run(task, config=one)[0]["allreduce", 2] for one in (config, halved))
    assert in_fp32 == pytest.approx(2 * in_bf16, rel=0.02)
