"""Every allowed layout computes what one rank computes in fp32 with plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import load_config
from pretrain.parity.compare import TOLERANCES, compare
from pretrain.parity.layouts import Layout as Laid
from pretrain.parity.layouts import laid_out, pairwise, product_of_layouts
from pretrain.parity.shrink import shrunk
from tests.support.ranks import RankPool
from tests.support.training import LLAMA, Layout

REPOSITORY = Path(__file__).parents[2]
TRAIN = "tests.support.training:train"
STEPS = 20
FAST = [
    Laid(tp=1, dp=1, zero=0),
    Laid(tp=1, dp=2, zero=0, accumulation=4, recompute="full"),
    Laid(tp=2, dp=1, zero=0, sequence_parallel=True, recompute="selective"),
    Laid(tp=1, dp=2, zero=1),
    Laid(tp=2, dp=1, zero=1, sequence_parallel=True, accumulation=4),
    Laid(tp=2, dp=1, zero=2),
    Laid(tp=1, dp=2, zero=3, recompute="full"),
    Laid(tp=2, dp=1, zero=3, sequence_parallel=True),
    Laid(tp=2, dp=2, zero=2, sequence_parallel=True),
    Laid(tp=2, dp=1, zero=1, precision="bf16", sequence_parallel=True),
    Laid(tp=1, dp=2, zero=2, precision="fp16", accumulation=4),
    Laid(tp=2, dp=1, zero=3, precision="bf16"),
]
EXTRA = [
    Laid(tp=2, dp=1, zero=2, sequence_parallel=True, extra="offload-optimizer", precision="bf16"),
    Laid(tp=1, dp=2, zero=1, extra="offload-optimizer", accumulation=4),
    Laid(tp=2, dp=1, zero=1, extra="offload-optimizer", recompute="full"),
    Laid(tp=1, dp=2, zero=2, extra="offload-optimizer"),
    Laid(tp=1, dp=2, zero=3, extra="offload-optimizer", precision="fp16"),
    Laid(tp=2, dp=1, zero=3, sequence_parallel=True, extra="offload-optimizer", recompute="full"),
    Laid(tp=1, dp=2, zero=3, extra="offload-parameters"),
    Laid(tp=2, dp=1, zero=3, extra="offload-parameters", precision="bf16"),
    Laid(tp=1, dp=2, zero=3, extra="offload-both", accumulation=4),
    Laid(tp=2, dp=1, zero=3, sequence_parallel=True, extra="offload-both"),
    Laid(tp=1, dp=2, zero=3, extra="hpz", precision="bf16"),
    Laid(tp=1, dp=4, zero=3, extra="hpz"),
]
PAIRWISE = pairwise(list(product_of_layouts(("fp32", "bf16", "fp16"))))


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    started: dict[int, RankPool] = {}

    class Pools(dict[int, RankPool]):
        def __missing__(self, size: int) -> RankPool:
            started[size] = self[size] = RankPool(size)
            return started[size]

    yield Pools()
    for pool in started.values():
        pool.__exit__(None, None, None)


def base(kind: str) -> Any:
    if kind == "llama":
        overrides = [f"model.{name}={str(value).lower()}" for name, value in LLAMA.items() if name != "kind"]
        overrides = [text.replace("rmsnorm", "RMSNorm") for text in overrides]
        return shrunk(load_config(REPOSITORY / "configs" / "gpt" / "tiny.yaml", overrides))
    return shrunk(load_config(REPOSITORY / "configs" / kind / "tiny.yaml"))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "torch.float32"), ("bf16", "torch.bfloat16")])
def test_weights_of_stage_3_are_split_before_they_are_moved(
    pools: dict[int, RankPool], precision: str, dtype: str
) -> None:
    for found in pools[2].run("tests.support.start:started", layout=Layout(1, 3, precision)):
        assert found["moved"] == []
        assert found["types"] == {dtype}
        assert found["kept"] == pytest.approx(found["whole"] / 2, rel=0.01)


@pytest.fixture(scope="module")
def references(pools: dict[int, RankPool]) -> dict[str, Any]:
    """One rank, fp32, plain torch: no DeepSpeed, no partition."""
    function = "pretrain.parity.probe:trace_reference"
    return {
        kind: pools[1].run(function, config=base(kind), steps=STEPS)[0] for kind in ("gpt", "bert", "llama")
    }


def check(pools: dict[int, RankPool], references: dict[str, Any], kind: str, layout: Laid) -> None:
    config = laid_out(base(kind), layout)
    traces = pools[layout.world_size].run("pretrain.parity.probe:trace_layout", config=config, steps=STEPS)
    difference = compare(traces[0], references[kind])
    assert not difference.faults(TOLERANCES[layout.precision])
    if layout.precision != "fp32":
        assert difference.faults(TOLERANCES["fp32"]), "it did not run in low precision"


@pytest.mark.distributed
@pytest.mark.parametrize("layout", FAST, ids=str)
def test_gpt_equals_one_rank(pools: dict[int, RankPool], references: dict[str, Any], layout: Laid) -> None:
    check(pools, references, "gpt", layout)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [FAST[1], FAST[2], FAST[7]], ids=str)
def test_bert_equals_one_rank(pools: dict[int, RankPool], references: dict[str, Any], layout: Laid) -> None:
    check(pools, references, "bert", layout)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layout"),
    [*(("gpt", layout) for layout in PAIRWISE), *(("bert", layout) for layout in PAIRWISE[::2])],
    ids=str,
)
def test_every_pair_of_settings_equals_one_rank(
    pools: dict[int, RankPool], references: dict[str, Any], kind: str, layout: Laid
) -> None:
    """Each value of TP, DP, ZeRO, SP, recompute, accumulation and precision with each of every other.

    For BERT half of these layouts: the parallel layers are GPT's.
    """
    check(pools, references, kind, layout)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("layout", [FAST[2], FAST[7], FAST[9]], ids=str)
def test_llama_equals_one_rank(pools: dict[int, RankPool], references: dict[str, Any], layout: Laid) -> None:
    check(pools, references, "llama", layout)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("layout", EXTRA, ids=str)
def test_offload_and_zero_plus_plus_equal_one_rank(
    pools: dict[int, RankPool], references: dict[str, Any], layout: Laid
) -> None:
    check(pools, references, "gpt", layout)


def test_what_is_allowed_is_tested() -> None:
    """Every extra x ZeRO x TP is either in EXTRA or refused; every plain layout is in the product."""
    from pretrain.config.layouts import EXTRAS

    tested = {(layout.extra, layout.zero, min(layout.tp, 2)) for layout in EXTRA}
    for extra in EXTRAS:
        for zero in range(4):
            for tp in (1, 2):
                allowed = not Laid(tp=tp, zero=zero, extra=extra).refusals()
                assert allowed == ((extra, zero, tp) in tested), (extra, zero, tp)
    plain = set(product_of_layouts(("fp32", "bf16", "fp16")))
    assert set(FAST) <= plain and set(PAIRWISE) <= plain


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


def dropped(kind: str, split: bool, recompute: str = "none") -> list[str]:
    """On one rank: a hash of every dropout mask of residuals and embeddings in one step, as drawn."""
    import hashlib

    import torch
    import torch.nn.functional as F

    from pretrain.models import build_model
    from pretrain.parallel.rng import seed_initialization, seed_step
    from pretrain.parallel.topology import initialize_topology
    from pretrain.step import to_device
    from tests.support.training import micro_batches, tiny_config

    topology = initialize_topology(2)
    parallel = {"tensor_model_parallel_size": 2, "sequence_parallel": split}
    config = tiny_config(
        kind,
        Layout(2),
        parallel=parallel,
        model={"hidden_dropout": 0.5, "attention_dropout": 0.1},
        training={"recompute": recompute},
    )
    seed_initialization(config.seed)
    model: Any = build_model(config)
    seed_step(config.seed, 0, topology)
    masks: list[str] = []
    original = F.dropout

    def recording(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        state = torch.get_rng_state()
        masks.append(hashlib.sha1(original(torch.ones_like(x), p, training).numpy().tobytes()).hexdigest())
        torch.set_rng_state(state)
        return original(x, p, training, inplace)

    F.dropout = recording
    try:
        model(**to_device(micro_batches(kind, 0, 0, 1)[0], topology.device))[
            "mlm_loss" if kind == "bert" else "lm_loss"
        ].backward()
    finally:
        F.dropout = original
    return masks


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_sequence_parallel_ranks_drop_differently(pools: dict[int, RankPool], kind: str) -> None:
    """The ranks hold other positions, so equal masks would repeat every S / TP tokens; without SP they must
    be equal, since the activations are the same."""
    function = "tests.distributed.test_layouts:dropped"
    whole = pools[2].run(function, kind=kind, split=False)
    assert len(whole[0]) == 5 and whole[0] == whole[1] and len(set(whole[0])) == 5
    split = pools[2].run(function, kind=kind, split=True)
    assert len(split[0]) == 5 and len({*split[0], *split[1]}) == 10
    again = pools[2].run(function, kind=kind, split=True, recompute="full")
    for plain, rank in zip(split, again, strict=True):
        assert len(rank) == 9 and set(rank) == set(plain), "recompute must draw the same masks"


@pytest.mark.distributed
def test_an_engine_leaves_no_threads_behind(pools: dict[int, RankPool]) -> None:
    """Stage 3 kept models in module globals, their groups with them, and 45 threads for each engine."""
    config = laid_out(base("gpt"), Laid(tp=2, dp=1, zero=3))
    counts = []
    for _ in range(3):
        pools[2].run("pretrain.parity.probe:trace_layout", config=config, steps=2)
        counts.append(pools[2].run("tests.support.training:living_threads")[0])
    assert counts[2] <= counts[0]
