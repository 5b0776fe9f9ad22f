"""`headwater data tokenizer`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from data_tools.commands.common import add_input_arguments, state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_input_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="model file to create")
    parser.add_argument("--vocab-size", type=int, required=True, help="ids, special ids included")
    parser.add_argument("--model-type", default="unigram", help="unigram (default; encodes faster) or bpe")
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=0.9995,
        help="share of characters with an id of their own, the rest in bytes (default: 0.9995)",
    )
    parser.add_argument(
        "--max-train-mb", type=float, default=100.0, help="train on a sample of this size (default: 100)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer

    options = TokenizerOptions(
        vocab_size=arguments.vocab_size,
        model_type=arguments.model_type,
        character_coverage=arguments.character_coverage,
        max_train_bytes=int(arguments.max_train_mb * 1e6),
        json_key=arguments.json_key,
        seed=arguments.seed,
    )
    start = time.monotonic()
    tokenizer, fresh = train_tokenizer(arguments.input, arguments.out, options, arguments.max_bad_fraction)
    print(
        f"{arguments.out}: {state(fresh)}{tokenizer.vocab_size} ids, {options.model_type}"
        + (f", trained in {time.monotonic() - start:.1f} s" if fresh else "")
    )
