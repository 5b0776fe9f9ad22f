"""`headwater data export-tokenizer`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.commands.common import add_input_arguments, bytes_of_mb, read_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("model", type=Path, help="tokenizer.model of `data tokenizer`, or a tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="directory to create")
    parser.add_argument(
        "--kind",
        default="gpt",
        choices=("gpt", "bert"),
        help="of model: bert adds [CLS] and [SEP] (default: gpt)",
    )
    parser.add_argument("--max-length", type=int, help="longest input of the model, in tokens")
    add_input_arguments(parser, required=False)
    parser.add_argument(
        "--sample-mb", type=float, default=20.0, help="of --input, compare so much (default: 20)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what was compared."""
    from data_tools.export_tokenizer import export_tokenizer
    from data_tools.text_sample import SampleOptions

    sampling = SampleOptions(
        read=read_options(arguments),
        max_bytes=bytes_of_mb("--sample-mb", arguments.sample_mb),
        seed=arguments.seed,
        max_bad_fraction=arguments.max_bad_fraction,
    )
    compared = export_tokenizer(
        arguments.model,
        arguments.out,
        kind=arguments.kind,
        max_length=arguments.max_length,
        inputs=arguments.input or (),
        sampling=sampling,
    )
    print(
        f"{arguments.out}: identical ids on {compared.documents:,} texts, {compared.bytes / 1e6:.2f} MB, "
        f"{compared.tokens:,} tokens"
    )
