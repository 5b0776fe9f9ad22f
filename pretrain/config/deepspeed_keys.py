"""The keys of the `deepspeed:` section: DeepSpeed itself passes over those that it does not know."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

_PASSED_ON = """
    bf16 fp16 zero_optimization data_types communication_data_type seq_parallel_communication_data_type
    activation_checkpointing aio autotuning checkpoint comet comms_logger compile csv_monitor
    dataloader_drop_last datastates_ckpt disable_allgather disable_python_gc dump_state flops_profiler
    gradient_accumulation_steps gradient_clipping log_level memory_breakdown steps_per_print tensorboard
    timers train_batch_size train_micro_batch_size_per_gpu wall_clock_breakdown wandb
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
""".split()

_SCALES = "would scale the gradients, which are sums over the whole batch here; remove it"
_REFUSED = {
    "optimizer": "Headwater sets this up itself; use the section `optimizer:`",
    "scheduler": "Headwater sets this up itself; use the section `schedule:`",
    "tensor_parallel": "Headwater sets this up itself; use the section `parallel:`",
    "gradient_allreduce_op": _SCALES,
    "gradient_predivide_factor": _SCALES,
    "prescale_gradients": _SCALES,
    "torch_autocast": "the type of the computation is `precision:`",
    "data_efficiency": "samples are those of the section `data:`; remove it",
    "expert_parallel": "the models have no experts; remove it",
    "pipeline": "there is no pipeline parallelism; remove it",
}


def key_problems(deepspeed: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the `deepspeed:` section that DeepSpeed would not read, or that would change the result."""
    for key in deepspeed:
        if key in _REFUSED:
            yield f"deepspeed.{key}: {_REFUSED[key]}"
        elif key not in _PASSED_ON:
            near = difflib.get_close_matches(str(key), _PASSED_ON, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(_PASSED_ON))}"
            yield f"deepspeed.{key}: unknown key; {hint}"


def refused_by_deepspeed(deepspeed: Mapping[str, Any], error: Exception) -> list[str]:
    """What DeepSpeed has against the section, one sentence for each key.

    Args:
        deepspeed: The `deepspeed:` section.
        error: Raised by DeepSpeed when it read its configuration.
    """
    if not isinstance(error, ValidationError):
        return [f"deepspeed: {error}"]
    return [_sentence(deepspeed, problem["loc"], problem["msg"]) for problem in error.errors()]


def _sentence(deepspeed: Mapping[str, Any], loc: tuple[int | str, ...], message: str) -> str:
    """DeepSpeed checks each section by itself, so `loc` begins below it: the section that has it is meant."""
    key = ".".join(str(part) for part in loc)
    where = f"deepspeed: {key}"
    for name, keys in deepspeed.items():
        if isinstance(keys, Mapping) and loc and loc[0] in keys:
            where = f"deepspeed.{name}.{key}"
    return f"{where}: DeepSpeed says: {message}"
