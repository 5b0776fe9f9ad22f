"""`headwater data tokenizer`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from data_tools.commands.common import add_input_arguments, bytes_of_mb, read_options, state
from data_tools.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_input_arguments(parser, required=False)
    parser.add_argument("--out", type=Path, required=True, help="model file to create")
    parser.add_argument("--vocab-size", type=int, help="ids, special ids included")
    parser.add_argument("--model-type", default="unigram", help="unigram (default; encodes faster) or bpe")
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=0.9995,
        help="share of characters with an id of their own, the rest in bytes (default: 0.9995)",
    )
    parser.add_argument(
        "--byte-fallback",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="spell other characters in bytes (default); without it they become [UNK] and are lost",
    )
    parser.add_argument(
        "--user-symbols", nargs="+", default=[], metavar="TEXT", help="strings that are always one token"
    )
    parser.add_argument(
        "--max-train-mb",
        type=float,
        default=100.0,
        help="train on a sample of this size, in memory (default: 100)",
    )
    integers = parser.add_argument_group("for integer streams (protein, DNA, items, codes), without --input")
    integers.add_argument(
        "--integers",
        action="store_true",
        help="write a vocabulary.json: ids 0 to --vocab-size - 1, then pad, cls, sep, mask and eod",
    )
    integers.add_argument(
        "--symbols", nargs="+", default=[], metavar="NAME", help="what the ids are shown as, e.g. A C G T"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    if arguments.integers:
        return _write_vocabulary(arguments)
    if arguments.symbols:
        raise DataError("--symbols belongs to --integers; --user-symbols are strings that stay one token")
    if not arguments.input or arguments.vocab_size is None:
        raise DataError("name the documents with --input and the size with --vocab-size (or see --integers)")
    _train(arguments)


def _train(arguments: argparse.Namespace) -> None:
    from data_tools.tokenizer_report import report_lines
    from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer

    options = TokenizerOptions(
        vocab_size=arguments.vocab_size,
        model_type=arguments.model_type,
        character_coverage=arguments.character_coverage,
        byte_fallback=arguments.byte_fallback,
        user_symbols=tuple(arguments.user_symbols),
        max_train_bytes=bytes_of_mb("--max-train-mb", arguments.max_train_mb),
        read=read_options(arguments),
        seed=arguments.seed,
    )
    start = time.monotonic()
    trained = train_tokenizer(arguments.input, arguments.out, options, arguments.max_bad_fraction)
    print(
        f"{arguments.out}: {state(trained.fresh)}{trained.tokenizer.vocab_size} ids, {options.model_type}"
        + (f", trained in {time.monotonic() - start:.1f} s" if trained.fresh else "")
    )
    for line in report_lines(trained.report):
        print(f"  {line}", file=sys.stderr if line.startswith("warning") else sys.stdout)


def _write_vocabulary(arguments: argparse.Namespace) -> None:
    from data_tools.tokenizer.integers import APPENDED, new_vocabulary

    if arguments.input:
        raise DataError("--integers takes no --input: the ids are those that the documents bring")
    if arguments.vocab_size is None and not arguments.symbols:
        raise DataError("--integers needs --vocab-size, the number of ids without the special ones")
    count = arguments.vocab_size if arguments.vocab_size is not None else len(arguments.symbols)
    vocabulary, fresh = new_vocabulary(arguments.out, count, arguments.symbols)
    special = ", ".join(f"{role} {vocabulary.require(role, purpose='')[0]}" for role in APPENDED)
    print(
        f"{arguments.out}: {state(fresh)}{vocabulary.vocab_size} ids (model.vocab_size): "
        f"{count} symbols, {special}"
    )
