"""The table of layouts: what is refused says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrain.config import ConfigError, load_config
from pretrain.config.deepspeed import deepspeed_config, running_stage
from pretrain.config.layouts import EXTRAS, refusals

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = REPOSITORY / "configs" / "gpt" / "tiny.yaml"


def refused(
    stage: int, tp: int = 1, precision: str = "fp32", split: bool = False, zero: dict[str, Any] | None = None
) -> list[str]:
    parallel = {"zero_stage": stage, "tensor_model_parallel_size": tp, "sequence_parallel": split}
    return refusals(parallel, precision, {"zero_optimization": zero} if zero else {})


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_precisions(stage: int, tp: int) -> None:
    assert not refused(stage, tp)
    for precision in ("bf16", "fp16"):
        assert bool(refused(stage, tp, precision)) == (stage == 0)
    assert bool(refused(stage, tp, split=True)) == (tp == 1)


@pytest.mark.parametrize(
    ("extra", "allowed"),
    [
        ("offload-optimizer", {(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)}),
        ("offload-parameters", {(3, 1), (3, 2)}),
        ("offload-both", {(3, 1), (3, 2)}),
        ("hpz", {(3, 1)}),
        ("nvme-optimizer", set()),
        ("nvme-parameters", set()),
        ("quantized-weights", set()),
        ("quantized-gradients", set()),
    ],
)
def test_offload_and_zero_plus_plus(extra: str, allowed: set[tuple[int, int]]) -> None:
    found = {(stage, tp) for stage in range(4) for tp in (1, 2) if not refused(stage, tp, zero=EXTRAS[extra])}
    assert found == allowed


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("deepspeed.zero_optimization=2", "deepspeed.zero_optimization: 2 is no section"),
        ("deepspeed.fp16=true", "deepspeed.fp16: True is no section"),
        ("deepspeed.zero_optimization.offload_optimizer=cpu", "write offload_optimizer: {device: cpu}"),
        ("deepspeed.zero_optimization.offload_param=cpu", "write offload_param: {device: cpu}"),
        ("deepspeed.zero_optimization.zero_hpz_partition_size=all", "'all' is no number of ranks"),
    ],
)
def test_a_value_where_deepspeed_has_a_section_is_told(override: str, expected: str) -> None:
    for world_size in (None, 2):
        with pytest.raises(ConfigError) as caught:
            load_config(TINY, [override], world_size)
        assert len(caught.value.problems) == 1 and expected in caught.value.problems[0]


def test_offload_switched_off_is_no_offload() -> None:
    assert not refused(0, zero={"offload_optimizer": {"device": "none"}, "offload_param": None})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["parallel.sequence_parallel=true"], "parallel.sequence_parallel: needs"),
        (
            [
                "parallel.sequence_parallel=true",
                "parallel.tensor_model_parallel_size=4",
                "batch.seq_length=126",
            ],
            "batch.seq_length: 126 is not a multiple of parallel.tensor_model_parallel_size: 4",
        ),
        (["parallel.zero_stage=0", "precision=fp16"], "parallel.zero_stage: 0 with precision: fp16"),
        (
            ["parallel.zero_stage=3", "deepspeed.zero_optimization.zero_hpz_partition_size=3"],
            "zero_hpz_partition_size: 3 does not divide the data-parallel size: 4",
        ),
        (["precision=bf16", "deepspeed.bf16.bf16_optimizer_states=true"], "Adam's moments are fp32"),
        (["data.limit.tokens=31"], "data.limit.tokens (31) is less than a sample"),
        (["deepspeed.fp16.loss_scale=8"], "deepspeed.fp16: contradicts precision: fp32"),
        (
            ["deepspeed.comunication_data_type=bf16"],
            "deepspeed.comunication_data_type: unknown key; did you mean 'communication_data_type'?",
        ),
        (["deepspeed.gradient_allreduce_op=sum"], "deepspeed.gradient_allreduce_op: would scale"),
        (["deepspeed.scheduler.type=WarmupLR"], "use the section `schedule:`"),
    ],
)
def test_refusals_reach_the_user(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TINY, overrides, 4)
    assert expected in str(caught.value)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_accumulates_and_reduces_in_fp32(precision: str) -> None:
    config = load_config(TINY, [f"precision={precision}", f"deepspeed.{precision}.enabled=true"], 2)
    generated = deepspeed_config(config, 2)
    assert generated[precision]["enabled"]
    assert generated["data_types"] == {"grad_accum_dtype": "fp32"}
    assert generated["communication_data_type"] == "fp32"
    faster = load_config(TINY, [f"precision={precision}", "deepspeed.communication_data_type=bf16"], 2)
    assert deepspeed_config(faster, 2)["communication_data_type"] == "bf16"


def test_the_loss_scale_can_be_configured() -> None:
    config = load_config(TINY, ["precision=fp16", "deepspeed.fp16.initial_scale_power=8"], 1)
    assert deepspeed_config(config, 1)["fp16"] == {"enabled": True, "initial_scale_power": 8}


OFFLOAD = "deepspeed.zero_optimization.offload_optimizer={device: cpu}"


@pytest.mark.parametrize(
    ("overrides", "ranks", "stage"),
    [
        (["parallel.zero_stage=1"], 1, 0),
        (["parallel.zero_stage=2", "parallel.tensor_model_parallel_size=2"], 2, 0),
        (["parallel.zero_stage=2", "deepspeed.zero_optimization.stage=2"], 1, 0),
        (["parallel.zero_stage=3"], 1, 3),
        (["parallel.zero_stage=1"], 2, 1),
        (["parallel.zero_stage=1", "precision=bf16"], 1, 1),
        (["parallel.zero_stage=2", OFFLOAD], 1, 2),
    ],
)
def test_a_lone_data_rank_in_fp32_partitions_nothing(overrides: list[str], ranks: int, stage: int) -> None:
    config = load_config(TINY, overrides, ranks)
    generated = deepspeed_config(config, ranks)
    assert running_stage(config, ranks) == generated["zero_optimization"]["stage"] == stage
    assert bool(generated["gradient_clipping"]) == bool(stage), "at stage 0 Headwater clips"
