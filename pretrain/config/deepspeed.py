"""The DeepSpeed configuration, generated from a job configuration; never written by hand."""

from __future__ import annotations

from typing import Any

from pretrain.config.derive import data_parallel_size, gradient_accumulation_steps
from pretrain.config.schema import JobConfig


def generated_keys(config: JobConfig, world_size: int) -> dict[str, Any]:
    """The keys that Headwater decides.

    `optimizer` and `scheduler` are absent because we hand DeepSpeed our own objects. Stages 1 to 3 clip
    inside DeepSpeed, which knows the partitions; stage 0 clips in `pretrain.parallel.zero`.
    """
    stage = config.parallel.zero_stage
    zero: dict[str, Any] = {"stage": stage}
    if stage in (1, 2):
        zero["overlap_comm"] = False
    keys: dict[str, Any] = {
        "train_batch_size": config.batch.global_batch_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps(config, world_size),
        "gradient_clipping": config.optimizer.clip_grad if stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "steps_per_print": 10**12,
    }
    if config.precision != "fp32":
        keys[config.precision] = {"enabled": True}
        keys["data_types"] = {"grad_accum_dtype": "fp32"}
    return keys


def running_stage(config: JobConfig, world_size: int) -> int:
    """The ZeRO stage that DeepSpeed runs.

    In fp32 a lone data-parallel rank has nothing to cut and needs no second copy of the weights: stages 1 and
    2 would only copy every gradient and weight through their buffers. Stage 0 computes the same.
    """
    stage = config.parallel.zero_stage
    offloads = "offload_optimizer" in (config.deepspeed.get("zero_optimization") or {})
    alone = data_parallel_size(config, world_size) == 1
    return 0 if stage in (1, 2) and alone and config.precision == "fp32" and not offloads else stage


def default_keys(config: JobConfig) -> dict[str, Any]:
    """What we give where the `deepspeed:` section does not say otherwise.

    DeepSpeed 0.19.8 reduces bf16 gradients in bf16, which rounds the fp32 sum over micro-batches again
    (measured: 1.6e-3 of the gradient, at stage 1 even with one data-parallel rank; 3e-8 when reduced in
    fp32). Megatron reduces in fp32 too; it costs twice the traffic.

    A bf16 gradient is added to its fp32 sum as soon as it is there, and forgotten.

    DeepSpeed's throughput timer, whose figures go nowhere here, waits for the GPU before and after each
    micro-batch unless it is switched off.
    """
    keys: dict[str, Any] = {"timers": {"throughput": {"enabled": False}}}
    if config.precision != "fp32":
        keys["communication_data_type"] = "fp32"
    return keys | ({"bf16": {"immediate_grad_update": True}} if config.precision == "bf16" else {})


def contradictions(config: JobConfig, world_size: int) -> list[str]:
    """Keys of the `deepspeed:` section that disagree with what is generated, one sentence each."""
    problems: list[str] = []
    _compare(config.deepspeed, generated_keys(config, world_size), "deepspeed", problems)
    for kind in ("bf16", "fp16"):
        if kind in config.deepspeed and config.precision != kind:
            problems.append(
                f"deepspeed.{kind}: contradicts precision: {config.precision}; set `precision: {kind}`"
            )
    return problems


def deepspeed_config(config: JobConfig, world_size: int) -> dict[str, Any]:
    """What `deepspeed.initialize` gets: our defaults, the `deepspeed:` section, the generated keys."""
    keys = _merged(_merged(default_keys(config), generated_keys(config, world_size)), config.deepspeed)
    if running_stage(config, world_size) == 0:
        keys = _merged(keys, {"zero_optimization": {"stage": 0}, "gradient_clipping": 0.0})
    return keys


def _compare(extra: dict[str, Any], ours: dict[str, Any], path: str, problems: list[str]) -> None:
    for key, value in extra.items():
        if key not in ours:
            continue
        if isinstance(value, dict) and isinstance(ours[key], dict):
            _compare(value, ours[key], f"{path}.{key}", problems)
        elif value != ours[key]:
            problems.append(
                f"{path}.{key}: {value!r} contradicts {ours[key]!r}, which follows from the run config"
            )


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
