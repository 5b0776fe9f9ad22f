"""`headwater import`: a Hugging Face GPT-2 or BERT directory becomes a checkpoint of ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line answers without loading torch
    from finetune.source import Architecture, Kind

EXAMPLES = """example:
  headwater import --hf downloads/gpt2 --out runs/gpt2
  headwater generate --checkpoint runs/gpt2 --prompt "Once upon a time"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater import`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="headwater import",
        description="Convert a Hugging Face GPT-2 or BERT to a checkpoint; prove that it computes the same.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hf", type=Path, required=True, help="directory with config.json and weights")
    parser.add_argument("--out", type=Path, required=True, help="run directory to write the checkpoint into")
    arguments = parser.parse_args(argv)
    for line in import_hf(arguments.hf, arguments.out):
        print(line)
    return 0


def import_hf(source: Path, run_dir: Path) -> list[str]:
    """Write the model in `source` as a weights-only checkpoint of step 0 in `run_dir`.

    Returns:
        What there is to tell about it, line by line.

    Raises:
        ConfigError: Not a GPT-2 or BERT directory, a variant that our models do not compute, or no tokenizer.
        CheckpointError: `run_dir` has checkpoints already.
        ConversionError: Our model computes something else with the converted weights; nothing is written.
    """
    from finetune.config import ImportedConfig
    from finetune.export_hf import LARGEST_DIFFERENCE
    from finetune.hf_config import model_section
    from finetune.source import difference_from, kind_of, write_weights
    from finetune.task_config import ClassificationTask
    from finetune.text import own_tokenizer, tokenizer_files
    from finetune.weights import from_hf
    from pretrain.config import ConfigError

    config = _read_config(source)
    of = _architecture(config, model_section(config, str(source)))
    kind = kind_of(of)
    files = tokenizer_files(source)
    if not files.keys() - {"config.json"}:
        raise ConfigError(
            f"{source}: has no tokenizer files; put tokenizer.json (or vocab.txt) beside the weights"
        )
    theirs, fresh = _load(source, kind)
    parameters = from_hf(kind.links(of.model), theirs.state_dict())
    difference = difference_from(theirs, of, parameters)
    _check(difference, LARGEST_DIFFERENCE, source)
    task = ClassificationTask(kind="classification") if of.labels else None
    imported = ImportedConfig(imported_from=source.name, model=of.model, task=task)
    checkpoint = write_weights(run_dir, of, parameters, imported, files)
    told = [f"logits of {kind.hf_class} and of our model differ by at most {difference:.1e}"]
    if fresh:
        told.append(f"not in {source}, so freshly initialised: {', '.join(fresh)}")
    if own_tokenizer(files) is None:
        told.append("no Headwater tokenizer.model there; its own tokenizer files are kept in the checkpoint")
    return [*told, f"imported to {checkpoint}"]


def _read_config(source: Path) -> Any:
    from transformers import AutoConfig

    from pretrain.config import ConfigError

    try:
        return AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{source}: not a Hugging Face model directory: {str(error).splitlines()[0]}"
        ) from error


def _architecture(config: Any, model: Any) -> Architecture:
    """A classifier keeps its head and label names; everything else becomes a pretraining model."""
    from finetune.source import Architecture

    classifier = "BertForSequenceClassification" in (config.architectures or [])
    if classifier and config.num_labels > 1 and config.problem_type in (None, "single_label_classification"):
        return Architecture(model, tuple(str(config.id2label[i]) for i in range(config.num_labels)))
    return Architecture(model)


def _load(source: Path, kind: Kind) -> tuple[Any, list[str]]:
    """The transformers model, and the names of its parts that the files do not hold."""
    import torch

    from finetune.source import load_theirs
    from pretrain.config import ConfigError

    torch.manual_seed(0)  # of the parts that are freshly initialised
    try:
        model, report = load_theirs(kind, source)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{source}: cannot load the weights: {str(error).splitlines()[0]}") from error
    return model, sorted({name.rpartition(".")[0] or name for name in report.get("missing_keys", [])})


def _check(difference: float, allowed: float, source: Path) -> None:
    from finetune.errors import ConversionError

    if not difference <= allowed:  # also catches NaN
        raise ConversionError(
            f"our model computes other logits than {source}: they differ by {difference:.1e} "
            f"(allowed: {allowed:.0e}); nothing was written, please report it"
        )
