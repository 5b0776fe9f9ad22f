"""`headwater import`: a Hugging Face directory (GPT-2, Llama, BERT) becomes a checkpoint of ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line answers without loading torch
    from finetune.kinds import Architecture, Kind

EXAMPLES = """example:
  headwater import --hf downloads/gpt2 --out runs/gpt2
  headwater generate --checkpoint runs/gpt2 --prompt "Once upon a time"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater import`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="headwater import",
        description="Convert a Hugging Face GPT-2, Llama or BERT to a checkpoint that computes the same.",
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
        ConfigError: Another kind of model, a variant that our models do not compute, or no tokenizer.
        CheckpointError: `run_dir` has checkpoints already.
        DataError: `run_dir` cannot be made: a file is in its way.
        ConversionError: Our model computes something else with the converted weights; nothing is written.
    """
    from data_tools.publish import require_directory
    from finetune.compare import require_same
    from finetune.config import ImportedConfig
    from finetune.hf_config import model_section
    from finetune.kinds import kind_of
    from finetune.source import write_weights
    from finetune.task_config import ClassificationTask
    from finetune.text import open_text_codec, own_tokenizer, tokenizer_files
    from finetune.weights import from_hf
    from pretrain.config import ConfigError

    require_directory(run_dir)
    config = _read_config(source)
    of = _architecture(config, model_section(config, str(source)))
    kind = kind_of(of)
    files = tokenizer_files(source)
    if not files.keys() - {"config.json"}:
        raise ConfigError(
            f"{source}: has no tokenizer files; put tokenizer.json (or vocab.txt) beside the weights"
        )
    open_text_codec(source, of.model.vocab_size)  # refuses the tokenizer of another model
    theirs, told = _load(source, kind)
    parameters = from_hf(kind.links(of.model), theirs.state_dict())
    found = require_same(theirs, of, parameters, "nothing was written")
    task = ClassificationTask(kind="classification") if of.labels else None
    imported = ImportedConfig(imported_from=source.name, model=of.model, task=task)
    checkpoint = write_weights(run_dir, of, parameters, imported, files)
    if own_tokenizer(files) is None:
        told.append("no Headwater tokenizer.model there; its own tokenizer files are kept in the checkpoint")
    return [found, *told, f"imported to {checkpoint}"]


def _read_config(source: Path) -> Any:
    from transformers import AutoConfig

    from pretrain.config import ConfigError

    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{source}: not a Hugging Face model directory: {str(error).splitlines()[0]}"
        ) from error


def _architecture(config: Any, model: Any) -> Architecture:
    """A classifier keeps its head and label names; everything else becomes a pretraining model."""
    from finetune.kinds import Architecture

    classifier = any(name.endswith("BertForSequenceClassification") for name in config.architectures or [])
    if classifier and config.num_labels > 1 and config.problem_type in (None, "single_label_classification"):
        return Architecture(model, tuple(str(config.id2label[i]) for i in range(config.num_labels)))
    return Architecture(model)


HEADS = ("cls.", "classifier.", "bert.pooler.")
"""What a Hugging Face directory may lack: a bare BertModel has no heads, one without pooling no pooler."""


def _load(source: Path, kind: Kind) -> tuple[Any, list[str]]:
    """The transformers model, and what there is to tell about parts that one side lacks.

    Raises:
        ConfigError: The weights cannot be read, safely, or do not make up the model of config.json.
    """
    import torch

    from finetune.source import load_theirs
    from pretrain.config import ConfigError

    torch.manual_seed(0)  # of the heads that are freshly initialised
    try:
        model, report = load_theirs(kind, source)
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        raise ConfigError(f"{source}: cannot load the weights: {str(error).splitlines()[0]}") from error
    fresh, unused = (report.get(name, []) for name in ("missing_keys", "unexpected_keys"))
    lost = [name for name in fresh if not name.startswith(HEADS)]
    if lost:
        raise ConfigError(
            f"{source}: the weights have no {lost[0]} ({len(lost)} missing), which config.json promises; "
            "is the download complete?"
        )
    told = []
    if fresh:
        told.append(f"not in {source}, so freshly initialised: {', '.join(_layers(fresh))}")
    if unused:
        told.append(f"in {source}, but no part of {kind.hf_class}, so left out: {', '.join(_layers(unused))}")
    return model, told


def _layers(names: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[0] or name for name in names})
