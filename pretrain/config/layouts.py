"""Which combinations of parallelism, precision, offload and ZeRO++ are allowed: one table.

A combination is allowed when the test of layouts has compared it with one rank, and refused with a reason
otherwise. docs/layouts.md shows the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

EXTRAS: dict[str, dict[str, Any]] = {
    "offload-optimizer": {"offload_optimizer": {"device": "cpu"}},
    "offload-parameters": {"offload_param": {"device": "cpu"}},
    "offload-both": {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
    "nvme-optimizer": {"offload_optimizer": {"device": "nvme"}},
    "nvme-parameters": {"offload_param": {"device": "nvme"}},
    "hpz": {"zero_hpz_partition_size": 2},
    "quantized-weights": {"zero_quantized_weights": True},
    "quantized-gradients": {"zero_quantized_gradients": True},
}
"""Names of what `deepspeed.zero_optimization` can add to a layout, and the keys that do it."""

_QUANTIZED = (
    "rounds to 8 bits or less in CUDA kernels, so no layout can be proven equal; use "
    "zero_hpz_partition_size, or communication_data_type: bf16 to halve the traffic of gradients"
)
_UNSUPPORTED = {
    ("zero_optimization", "zero_quantized_weights"): _QUANTIZED,
    ("zero_optimization", "zero_quantized_nontrainable_weights"): _QUANTIZED,
    ("zero_optimization", "zero_quantized_gradients"): _QUANTIZED,
    ("zero_optimization", "zeropp_loco_param"): _QUANTIZED,
    ("zero_optimization", "mics_shard_size"): "checkpoints cannot read MiCS partitions; use ZeRO 3",
    ("zero_optimization", "zenflow"): "updates some weights late, so a layout would change the result",
    ("zero_optimization", "cpu_offload"): "is deprecated; use offload_optimizer: {device: cpu}",
    ("zero_optimization", "cpu_offload_param"): "is deprecated; use offload_param: {device: cpu}",
    ("bf16", "bf16_master_weights_and_grads"): "master weights are fp32 here",
    ("bf16", "bf16_optimizer_states"): "Adam's moments are fp32 here",
    ("fp16", "fp16_master_weights_and_grads"): "master weights are fp32 here",
    ("fp16", "auto_cast"): "inputs are token ids",
}
"""Sections and keys of `deepspeed:` that no layout allows, and why."""

_ROWS: dict[str, dict[str, Any]] = {
    "precision: fp32": {"precision": "fp32"},
    "precision: bf16, fp16": {"precision": "bf16"},
    "sequence_parallel: true": {"split": True},
    "offload_optimizer: {device: cpu}": {"extra": "offload-optimizer"},
    "offload_param: {device: cpu}": {"extra": "offload-parameters"},
    "offload to nvme": {"extra": "nvme-optimizer"},
    "zero_hpz_partition_size": {"extra": "hpz"},
    "zero_quantized_weights, _gradients": {"extra": "quantized-weights"},
}


def refusals(parallel: Mapping[str, Any], precision: str, deepspeed: Mapping[str, Any]) -> list[str]:
    """Why a layout is not allowed, one sentence for each reason; empty when it is.

    Args:
        parallel: Values of the `parallel` section.
        precision: fp32, bf16 or fp16.
        deepspeed: The `deepspeed` section.
    """
    stage, tp = parallel["zero_stage"], parallel["tensor_model_parallel_size"]
    if malformed := list(_malformed(deepspeed)):
        return malformed
    return [
        *_precision_refusals(stage, precision),
        *_sequence_refusals(tp, parallel["sequence_parallel"]),
        *_unsupported(deepspeed),
        *_zero_refusals(stage, tp, deepspeed.get("zero_optimization") or {}),
    ]


def table() -> str:
    """What is allowed, as the Markdown table of docs/layouts.md; fp32 unless the row says otherwise."""
    lines = ["| | ZeRO 0 | ZeRO 1 | ZeRO 2 | ZeRO 3 |", "|---|---|---|---|---|"]
    for name, choice in _ROWS.items():
        cells = [_cell(stage, **choice) for stage in range(4)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _precision_refusals(stage: int, precision: str) -> Iterator[str]:
    if stage == 0 and precision != "fp32":
        yield (
            f"parallel.zero_stage: 0 with precision: {precision} is not allowed (DeepSpeed's stage-0 "
            "optimizer clips by a wrong gradient norm under tensor parallelism and accumulates in low "
            "precision); use zero_stage: 1, which computes the same with less memory"
        )


def _sequence_refusals(tp: int, split: bool) -> Iterator[str]:
    if split and tp == 1:
        yield (
            "parallel.sequence_parallel: needs parallel.tensor_model_parallel_size of 2 or more; it splits "
            "activations over the tensor-parallel ranks"
        )


def _malformed(deepspeed: Mapping[str, Any]) -> Iterator[str]:
    """Keys that we look into and that are not what DeepSpeed takes there."""
    for section in dict.fromkeys(section for section, _ in _UNSUPPORTED):
        if not isinstance(deepspeed.get(section) or {}, Mapping):
            yield f"deepspeed.{section}: {deepspeed[section]!r} is no section; write keys below it"
    where, zero = "deepspeed.zero_optimization", deepspeed.get("zero_optimization") or {}
    if not isinstance(zero, Mapping):
        return
    for key in ("offload_optimizer", "offload_param"):
        if not isinstance(zero.get(key) or {}, Mapping):
            yield f"{where}.{key}: {zero[key]!r} is no section; write {key}: {{device: cpu}}"
    if not isinstance(zero.get("zero_hpz_partition_size", 1), int):
        yield f"{where}.zero_hpz_partition_size: {zero['zero_hpz_partition_size']!r} is no number of ranks"


def _unsupported(deepspeed: Mapping[str, Any]) -> Iterator[str]:
    for (section, key), reason in _UNSUPPORTED.items():
        if (deepspeed.get(section) or {}).get(key):
            yield f"deepspeed.{section}.{key}: {reason}"


def _zero_refusals(stage: int, tp: int, zero: Mapping[str, Any]) -> Iterator[str]:
    where = "deepspeed.zero_optimization"
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = _device(zero, key)
        if device == "nvme":
            yield (
                f"{where}.{key}: device: nvme is not supported (checkpoints read the state from memory); "
                "use device: cpu"
            )
        elif is_offloaded(zero, key) and stage < least:
            yield f"{where}.{key}: needs parallel.zero_stage of {least} or more, which partitions it"
    if (zero.get("offload_optimizer") or {}).get("super_offload"):
        yield f"{where}.offload_optimizer.super_offload: needs Grace Hopper and is not tested; remove it"
    if (zero.get("offload_optimizer") or {}).get("ratio", 1.0) != 1.0:
        yield f"{where}.offload_optimizer.ratio: checkpoints cannot read half an offload; remove it"
    if zero.get("zero_hpz_partition_size", 1) > 1:
        if stage != 3:
            yield f"{where}.zero_hpz_partition_size: needs parallel.zero_stage: 3, whose weights it copies"
        if tp > 1:
            yield (
                f"{where}.zero_hpz_partition_size: needs parallel.tensor_model_parallel_size: 1; DeepSpeed "
                "makes its groups of neighbouring ranks, which hold different slices"
            )


def is_offloaded(zero: Mapping[str, Any], key: str) -> bool:
    """Whether `deepspeed.zero_optimization` takes off the device what its `key` offload_... is about."""
    return _device(zero, key) != "none"


def _device(zero: Mapping[str, Any], key: str) -> str:
    return str((zero.get(key) or {}).get("device") or "none")


def _cell(stage: int, *, precision: str = "fp32", split: bool = False, extra: str = "") -> str:
    deepspeed = {"zero_optimization": EXTRAS[extra]} if extra else {}
    allowed = []
    for tp in (1, 2):
        parallel = {"zero_stage": stage, "tensor_model_parallel_size": tp, "sequence_parallel": split}
        allowed.append(not refusals(parallel, precision, deepspeed))
    return {(True, True): "yes", (True, False): "TP 1", (False, True): "TP > 1", (False, False): "no"}[
        allowed[0], allowed[1]
    ]
