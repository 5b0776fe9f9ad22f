"""`headwater export`: a checkpoint becomes a directory that transformers loads with `from_pretrained`.

The directory appears only after transformers has loaded it and computed the same logits as our own model.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.arguments import add_checkpoint

if TYPE_CHECKING:  # the command line answers without loading torch
    from finetune.kinds import Kind
    from finetune.source import Source

TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_SHARD_SIZE = "5GB"
"""Of a weight file, transformers' own default."""

EXAMPLES = """examples:
  headwater export --checkpoint runs/bert-tiny --out exported/bert-tiny
  headwater export --checkpoint runs/sft-lora --out exported/adapter --adapter
  headwater export --checkpoint runs/gpt-tiny/checkpoints/step-00000200 --out exported/gpt-tiny

then in Python:
  AutoModelForCausalLM.from_pretrained("exported/gpt-tiny")
  AutoTokenizer.from_pretrained("exported/gpt-tiny")
  BertForSequenceClassification.from_pretrained("exported/bert-tiny", num_labels=2)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater export`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="headwater export",
        description="Convert a checkpoint to the Hugging Face format and prove that it computes the same.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument(
        "--max-shard-size",
        default=MAX_SHARD_SIZE,
        metavar="SIZE",
        help=f"weights are split into files of at most this size, as 500MB (default: {MAX_SHARD_SIZE})",
    )
    parser.add_argument(
        "--adapter", action="store_true", help="of a LoRA run: the adapters alone, as peft loads them"
    )
    arguments = parser.parse_args(argv)
    if arguments.adapter:
        from finetune.export_adapter import export_adapter

        for line in export_adapter(arguments.checkpoint, arguments.out):
            print(line)
        return 0
    for line in export(arguments.checkpoint, arguments.out, arguments.max_shard_size):
        print(line)
    return 0


def export(checkpoint: Path, out: Path, max_shard_size: str = MAX_SHARD_SIZE) -> list[str]:
    """Write the model in `checkpoint` to `out`.

    Args:
        checkpoint: A run directory or one checkpoint.
        out: Must not exist yet; is complete or absent afterwards.
        max_shard_size: Of a weight file, as transformers writes sizes.

    Returns:
        What there is to tell about it, line by line.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: A model that transformers cannot compute, or a size that is none.
        DataError: `out` exists, or a parent of it is no directory.
        ConversionError: transformers computes something else with the written files; nothing is published.
    """
    from data_tools.publish import publish_directory
    from finetune.kinds import kind_of
    from finetune.model_card import write_model_card
    from finetune.source import read_source

    source = read_source(checkpoint)
    kind = kind_of(source.architecture)
    with publish_directory(out) as directory:
        write_model(source, kind, directory, max_shard_size)
        told = [*write_tokenizer(source, directory), *write_chat_template(source, directory)]
        found = prove(source, kind, directory)
        write_model_card(source, kind, out.name, found, directory)
    return [*told, found, f"exported {source.directory} to {out}"]


def write_model(source: Source, kind: Kind, directory: Path, max_shard_size: str) -> None:
    """Write config.json, generation_config.json for a GPT, and the weights as safetensors.

    Raises:
        ConfigError: `max_shard_size` is not a size.
    """
    from huggingface_hub import save_torch_state_dict
    from transformers import GenerationConfig

    from finetune.text import bos_id, open_text_codec
    from finetune.weights import to_hf
    from pretrain.config import ConfigError

    config = kind.hf_config(source.architecture)
    codec = open_text_codec(source.directory, source.architecture.model.vocab_size)
    special = {"pad_token_id": codec.pad_id}
    if source.architecture.model.kind == "gpt":
        special |= {"bos_token_id": bos_id(codec), "eos_token_id": codec.eod_id}
        GenerationConfig(**special).save_pretrained(directory)
    for name, value in special.items():
        setattr(config, name, value)
    config.architectures = [kind.hf_class]
    config.dtype = "float32"
    config.save_pretrained(directory)
    state = to_hf(kind.links(source.architecture.model), source.parameters)
    try:
        save_torch_state_dict(state, directory, max_shard_size=max_shard_size)
    except ValueError as error:
        raise ConfigError(f"--max-shard-size: {max_shard_size}: {error}") from error


def write_tokenizer(source: Source, directory: Path) -> list[str]:
    """Write our tokenizer in Hugging Face's format, or give an imported model its own files back.

    Returns:
        What there is to tell about it.
    """
    from data_tools.publish import write_json
    from finetune.hf_tokenizer import write_hf_tokenizer
    from finetune.source import longest_input
    from finetune.text import own_tokenizer, reads_integers, tokenizer_files

    model, length = source.architecture.model, longest_input(source.directory, source.architecture)
    files = tokenizer_files(source.directory)
    own = own_tokenizer(files)
    if own is not None and reads_integers(files):
        shutil.copyfile(own, directory / own.name)
        return ["the model reads integers, so there is no tokenizer; its vocabulary.json is copied"]
    if own is not None:
        return [write_hf_tokenizer(own, model.kind, length, directory)]
    names = sorted(files.keys() - {"config.json"})
    for name in names:
        shutil.copyfile(files[name], directory / name)
    if source.architecture.task is not None and TOKENIZER_CONFIG in names:
        settings = json.loads((directory / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        write_json(directory / TOKENIZER_CONFIG, settings | {"model_max_length": length})
    return [f"the tokenizer files of the imported model are copied: {', '.join(names)}"]


def write_chat_template(source: Source, directory: Path) -> list[str]:
    """Give the tokenizer the chat template of the training, if there is one; returns what to tell."""
    from finetune.task_config import SftTask

    task = source.architecture.task
    if not isinstance(task, SftTask) or task.chat_template is None:
        return []
    (directory / "chat_template.jinja").write_text(task.chat_template, encoding="utf-8")
    return ["the tokenizer has the chat template of task.chat_template"]


def prove(source: Source, kind: Kind, directory: Path) -> str:
    """Compare our model with what transformers loads from `directory`; returns what was found.

    Raises:
        ConversionError: If they differ, or files and model do not fit.
    """
    from finetune.compare import require_same
    from finetune.errors import ConversionError
    from finetune.source import load_theirs

    theirs, wrong = load_theirs(kind, directory)
    if wrong:
        raise ConversionError(f"transformers cannot load the exported weights ({wrong}); nothing was written")
    return require_same(theirs, source.architecture, source.parameters, "nothing was written")
