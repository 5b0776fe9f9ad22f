"""`headwater export`: a checkpoint becomes a directory that transformers loads with `from_pretrained`.

The directory appears only after transformers has loaded it and computed the same logits as our own model.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line answers without loading torch
    from finetune.source import Kind, Source

LARGEST_DIFFERENCE = 1e-4
"""Of logits, in fp32; more means that weights are wrong, not rounded."""

EXAMPLES = """examples:
  headwater export --checkpoint runs/bert-tiny --out exported/bert-tiny
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
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="run directory (newest checkpoint) or step directory"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist")
    arguments = parser.parse_args(argv)
    for line in export(arguments.checkpoint, arguments.out):
        print(line)
    return 0


def export(checkpoint: Path, out: Path) -> list[str]:
    """Write the model in `checkpoint` to `out`.

    Args:
        checkpoint: A run directory or one checkpoint.
        out: Must not exist yet; is complete or absent afterwards.

    Returns:
        What there is to tell about it, line by line.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: A model that transformers cannot compute (pre-norm BERT).
        DataError: `out` exists.
        ConversionError: transformers computes something else with the written files; nothing is published.
    """
    from data_tools.publish import publish_directory
    from finetune.source import kind_of, read_source

    source = read_source(checkpoint)
    kind = kind_of(source.architecture)
    with publish_directory(out) as directory:
        write_model(source, kind, directory)
        told = write_tokenizer(source, directory)
        difference = prove(source, kind, directory)
    allowed = f"allowed: {LARGEST_DIFFERENCE:.0e}"
    told.append(f"logits of {kind.hf_class} and of our model differ by at most {difference:.1e} ({allowed})")
    return [*told, f"exported {source.directory} to {out}"]


def write_model(source: Source, kind: Kind, directory: Path) -> None:
    """Write config.json and model.safetensors."""
    from safetensors.torch import save_file

    from finetune.text import open_text_codec
    from finetune.weights import to_hf

    config = kind.hf_config(source.architecture)
    codec = open_text_codec(source.directory)
    config.pad_token_id = codec.pad_id
    if source.architecture.model.kind == "gpt":
        config.bos_token_id = config.eos_token_id = codec.eod_id
    config.architectures = [kind.hf_class]
    config.dtype = "float32"
    state = to_hf(kind.links(source.architecture.model), source.parameters)
    config.save_pretrained(directory)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(source: Source, directory: Path) -> list[str]:
    """Write our tokenizer in Hugging Face's format, or give an imported model its own files back.

    Returns:
        What there is to tell about it.
    """
    from finetune.hf_tokenizer import write_hf_tokenizer
    from finetune.text import own_tokenizer, tokenizer_files

    model = source.architecture.model
    files = tokenizer_files(source.directory)
    own = own_tokenizer(files)
    if own is not None and own.name == "vocabulary.json":
        shutil.copyfile(own, directory / own.name)
        return ["the model reads integers, so there is no tokenizer; its vocabulary.json is copied"]
    if own is not None:
        return [write_hf_tokenizer(own, model.kind, model.max_position_embeddings, directory)]
    names = sorted(files.keys() - {"config.json"})
    for name in names:
        shutil.copyfile(files[name], directory / name)
    return [f"the tokenizer files of the imported model are copied: {', '.join(names)}"]


def prove(source: Source, kind: Kind, directory: Path) -> float:
    """Compare our model with what transformers loads from `directory`; returns the largest difference.

    Raises:
        ConversionError: If it is too large, or files and model do not fit.
    """
    from finetune.errors import ConversionError
    from finetune.source import difference_from, load_theirs

    theirs, wrong = load_theirs(kind, directory)
    if wrong:
        raise ConversionError(f"transformers cannot load the exported weights ({wrong}); nothing was written")
    difference = difference_from(theirs, source.architecture, source.parameters)
    if not difference <= LARGEST_DIFFERENCE:  # also catches NaN
        raise ConversionError(
            f"{kind.hf_class} computes other logits than our model: they differ by {difference:.1e} "
            f"(allowed: {LARGEST_DIFFERENCE:.0e}); the export is wrong and was not written, please report it"
        )
    return difference
