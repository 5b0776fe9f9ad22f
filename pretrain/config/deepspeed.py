"""The DeepSpeed configuration, generated from a job configuration; never written by hand."""

from __future__ import annotations

from typing import Any

from pretrain.config.derive import gradient_accumulation_steps
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
    if config.precision == "bf16":
        keys["bf16"] = {"enabled": True}
        keys["data_types"] = {"grad_accum_dtype": "fp32"}
    return keys


def contradictions(config: JobConfig, world_size: int) -> list[str]:
    """Keys of the `deepspeed:` section that disagree with what is generated, one sentence each."""
    problems: list[str] = []
    _compare(config.deepspeed, generated_keys(config, world_size), "deepspeed", problems)
    for key, instead in (
        ("optimizer", "optimizer:"),
        ("scheduler", "schedule:"),
        ("tensor_parallel", "parallel:"),
    ):
        if key in config.deepspeed:
            problems.append(f"deepspeed.{key}: Headwater sets this up itself; use the section `{instead}`")
    if "bf16" in config.deepspeed and config.precision != "bf16":
        problems.append(f"deepspeed.bf16: contradicts precision: {config.precision}; set `precision: bf16`")
    if "fp16" in config.deepspeed:
        problems.append("deepspeed.fp16: fp16 is not supported; set `precision: bf16`")
    return problems


def deepspeed_config(config: JobConfig, world_size: int) -> dict[str, Any]:
    """What `deepspeed.initialize` gets: the generated keys with the `deepspeed:` section merged in."""
    return _merged(generated_keys(config, world_size), config.deepspeed)


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
