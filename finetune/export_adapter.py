"""`headwater export --adapter`: the adapters of a LoRA run as a directory that peft loads.

What several matrices of transformers' model are one of ours (query, key and value; gate and up) share the
adapter's A there, and its B is cut between them like the matrix itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_tools.publish import publish_directory, require_absent
from finetune.errors import ConversionError
from finetune.kinds import GPT2, Kind, kind_of, task_kind
from finetune.lora import ADAPTER_PARTS, adapted, lora_of, merged
from finetune.lora_config import LoraConfig
from finetune.source import find_model, read_architecture
from finetune.weights import to_hf
from pretrain.checkpoint import read_config, read_parameters
from pretrain.config import ConfigError
from pretrain.config.model import ModelConfig
from pretrain.models.low_rank import FIRST, SECOND

TRAINED_WHOLE = ("head.", "encoder.pooler.")
"""What stands in the directory as it is: always trained, or so where the pretrained model had none."""

PREFIX = "base_model.model."
LARGEST_DIFFERENCE = 1e-6
"""Between base weight plus adapter and merged weight, relative to the largest element; fp32 rounding."""
TASK_TYPES = {
    "classification": "SEQ_CLS",
    "multi_label": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "tagging": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "sft": "CAUSAL_LM",
}


def export_adapter(checkpoint: Path, out: Path) -> list[str]:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        checkpoint: A run directory or checkpoint of a run with `lora`.
        out: Must not exist yet; is complete or absent afterwards.

    Returns:
        What there is to tell about it, line by line.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: It has no adapters, or its model no counterpart in transformers.
        DataError: `out` exists, or a parent of it is no directory.
        ConversionError: Base weights with the written adapters are not the merged weights.
    """
    require_absent(out)
    directory = find_model(checkpoint)
    lora = lora_of(read_config(directory))
    if lora is None:
        raise ConfigError(f"{directory} has no adapters; export it without --adapter")
    of, parameters = read_architecture(directory), read_parameters(directory)
    kind = kind_of(of)
    state = adapter_state(kind, of.model, parameters)
    found = _prove(kind, of.model, parameters, lora, state)
    config = _config(kind, lora, state, TASK_TYPES.get(task_kind(of) or ""))
    with publish_directory(out) as writing:
        save_file(state, writing / "adapter_model.safetensors", {"format": "pt"})
        (writing / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return [
        found,
        f"load the base as transformers' {kind.hf_class}, then PeftModel.from_pretrained(base, {str(out)!r})",
        f"exported the adapters of {directory} to {out}",
    ]


def adapter_state(kind: Kind, model: ModelConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of peft: lora_A [r, in] and lora_B [out, r] by transformers' names, and what is whole."""
    state: dict[str, Tensor] = {}
    links = {link.ours: link for link in kind.links(model)}
    for name in adapted(parameters):
        link, first = links[f"{name}.weight"], parameters[f"{name}.{FIRST}"]
        for theirs, second in zip(link.theirs, link.to_hf(parameters[f"{name}.{SECOND}"]), strict=True):
            module = theirs.removesuffix(".weight")
            state[f"{PREFIX}{module}.lora_A.weight"] = first.clone()
            # A Conv1D's matrix is stored transposed, its adapter is not.
            state[f"{PREFIX}{module}.lora_B.weight"] = (second.t() if kind is GPT2 else second).contiguous()
    for name in parameters:
        if name.startswith(TRAINED_WHOLE):
            (theirs,), (tensor,) = links[name].theirs, links[name].to_hf(parameters[name])
            state[PREFIX + theirs] = tensor.contiguous()
    return state


def _config(
    kind: Kind, lora: LoraConfig, state: Mapping[str, Tensor], task_type: str | None
) -> dict[str, Any]:
    adapters = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in state if ".lora_" in name}
    whole = {name.removeprefix(PREFIX).rpartition(".")[0] for name in state if ".lora_" not in name}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": kind is GPT2,
        "target_modules": sorted(adapters),
        "modules_to_save": sorted(whole) or None,
        "inference_mode": True,
    }


def _prove(
    kind: Kind,
    model: ModelConfig,
    parameters: Mapping[str, Tensor],
    lora: LoraConfig,
    state: Mapping[str, Tensor],
) -> str:
    """Compare transformers' base weights plus the adapters, computed by peft's rule, with the merged ones."""
    links = kind.links(model)
    base = {name: t for name, t in parameters.items() if not name.endswith(ADAPTER_PARTS)}
    before, after = to_hf(links, base), to_hf(links, merged(parameters, lora))
    scale, largest = lora.alpha / lora.rank, 0.0
    for name, wanted in after.items():
        module = name.removesuffix(".weight")
        found = before[name]
        if f"{PREFIX}{module}.lora_A.weight" in state:
            first, second = (state[f"{PREFIX}{module}.lora_{part}.weight"] for part in "AB")
            added = scale * (second @ first)
            found = found + (added.t() if kind is GPT2 else added)
        difference = float((found - wanted).abs().max() / torch.clamp(wanted.abs().max(), min=1e-12))
        largest = max(largest, difference)
    told = f"base weights with the adapters and merged weights differ by at most {largest:.1e} of the largest"
    if not largest <= LARGEST_DIFFERENCE:
        raise ConversionError(f"{told}; nothing was written, please report it")
    return told
