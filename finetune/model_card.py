"""The README.md of an exported model: what it is, what it read, how far it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from finetune.kinds import Kind
from finetune.source import Source
from pretrain.checkpoint import read_config
from pretrain.checkpoint.manifest import read_manifest
from pretrain.config.derive import padding_parameters, parameter_count
from pretrain.config.model import ModelConfig

PIPELINES = {
    "CausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
}
"""Tasks on the Hugging Face hub, by the end of a class's name."""


def write_model_card(source: Source, kind: Kind, name: str, comparison: str, directory: Path) -> None:
    """Write README.md with the metadata that the hub reads.

    Args:
        source: The checkpoint.
        kind: Its class in transformers.
        name: Title of the card.
        comparison: The sentence that the comparison of logits ended with.
        directory: Of the exported model.
    """
    task = next(task for end, task in PIPELINES.items() if kind.hf_class.endswith(end))
    metadata = {"library_name": "transformers", "pipeline_tag": task, "tags": ["headwater"]}
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {name}",
        "",
        f"`{kind.hf_class}`, written by `headwater export`. {comparison[0].upper()}{comparison[1:]}.",
        "",
        "## Architecture",
        "",
        *_table(_architecture(source)),
        "",
        "## Training",
        "",
        *_table(_training(source.directory)),
    ]
    (directory / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _architecture(source: Source) -> dict[str, Any]:
    model = source.architecture.model
    rows: dict[str, Any] = {} if source.architecture.labels else {"parameters": _parameters(model)}
    rows |= {key: value for key, value in model.model_dump().items() if value is not None}
    if source.architecture.labels is not None:
        rows["labels"] = ", ".join(source.architecture.labels)
    return rows


def _parameters(model: ModelConfig) -> str:
    return f"{parameter_count(model) - padding_parameters(model):,}"


def _training(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint's config, manifest and the run's metrics tell; nothing is made up."""
    config, manifest = read_config(checkpoint), read_manifest(checkpoint)
    rows: dict[str, Any] = {}
    if "imported_from" in config:
        rows["imported from"] = config["imported_from"]
    if "pretrained" in config:
        rows["finetuned from"] = Path(config["pretrained"]).name
    corpora = config.get("data", {}).get("corpora", [])
    if corpora:
        rows["corpora (weight)"] = ", ".join(f"{c['name']} ({c.get('weight', 1.0):g})" for c in corpora)
    rows["optimizer steps"] = f"{manifest['step']:,}"
    metrics = _metrics(checkpoint.parent.parent / "metrics.jsonl", int(manifest["step"]))
    if "consumed_tokens" in metrics:
        rows["tokens"] = f"{metrics['consumed_tokens']:,}"
    rows |= {key: f"{metrics[key]:.4f}" for key in ("loss", "eval/loss") if key in metrics}
    for key in ("batch", "optimizer", "schedule"):
        if key in config:
            rows[key] = ", ".join(f"{k} {v}" for k, v in config[key].items() if v is not None)
    rows |= {key: config[key] for key in ("precision", "seed") if key in config}
    return rows


def _metrics(path: Path, step: int) -> dict[str, Any]:
    """The newest values that a run logged up to a step; none where the run directory was left behind."""
    found: dict[str, Any] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # the last may be half written
            row = json.loads(line)
            if row["step"] <= step:
                found |= row
    return found


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
