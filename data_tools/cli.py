"""`headwater data`: collect text, train a tokenizer, prepare a corpus, look at it, check it.

Each command is a module of `data_tools.commands`, imported when it is asked for: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import NamedTuple

from data_tools.errors import DataError

_EXAMPLES = """\
examples, in order:
  headwater data python-docs --out runs/data/python-docs
  headwater data tokenizer --input runs/data/python-docs/corpus.jsonl \\
      --vocab-size 8192 --out runs/data/tokenizer.model
  headwater data prepare --input runs/data/python-docs/corpus.jsonl --tokenizer runs/data/tokenizer.model \\
      --sentences --validation-fraction 0.05 --workers 2 --out runs/data/corpus
  headwater data stats runs/data/corpus
  headwater data show runs/data/corpus --document 3
  headwater data verify runs/data/corpus

of a run: headwater data trace (what a step read), headwater data audit (was anything repeated or skipped?)

A command that finds its output complete, made from the same inputs and options, is done at once.
"""


class Command(NamedTuple):
    """A command's module in `data_tools.commands`, what it does, and how it is called."""

    module: str
    summary: str
    example: str


COMMANDS = {
    "python-docs": Command(
        "python_docs",
        "collect the docstrings of this Python: a small real corpus and a classification set",
        "--out runs/data/python-docs",
    ),
    "tokenizer": Command(
        "tokenizer",
        "train a lossless sentencepiece tokenizer, or write the vocabulary of an integer stream",
        "--input docs.jsonl --vocab-size 32000 --out tokenizer.model",
    ),
    "export-tokenizer": Command(
        "export_tokenizer",
        "write a tokenizer in Hugging Face's format and prove that it gives the same ids",
        "tokenizer.model --out hf-tokenizer --input docs.jsonl",
    ),
    "prepare": Command(
        "prepare",
        "tokenise documents into shards, shuffled, with a validation split",
        "--input docs.jsonl --tokenizer tokenizer.model --sentences --workers 8 --out corpus",
    ),
    "show": Command("show", "show stored documents as text", "runs/data/corpus --document 3 --count 2"),
    "stats": Command("stats", "print sizes and length percentiles of a corpus", "runs/data/corpus"),
    "merge": Command("merge", "join corpora of the same tokenizer", "corpus-a corpus-b --out corpus"),
    "report": Command(
        "report", "write one HTML page about a corpus: funnel, lengths, samples", "runs/data/corpus"
    ),
    "verify": Command(
        "verify",
        "check every byte of a corpus against its hashes and the rules of the format",
        "runs/data/corpus",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Run `headwater data ARGV`.

    Returns:
        0; a bad option ends the process with argparse's code 2.

    Raises:
        DataError: what the user got wrong, or an operating system error that names its file.
    """
    arguments = _parser(argv[0] if argv else "").parse_args(argv)
    module = importlib.import_module(f"data_tools.commands.{COMMANDS[arguments.command].module}")
    try:
        module.run(arguments)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{error.filename or 'input or output'}: {error.strerror or error}") from error
    return 0


def _parser(asked: str) -> argparse.ArgumentParser:
    """The parser of all commands; only the one that is asked for knows its options."""
    parser = argparse.ArgumentParser(
        prog="headwater data",
        description="Build a corpus: collect text, train a tokenizer, write token shards.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, (module, summary, example) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n  headwater data {name} {example}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == asked:
            importlib.import_module(f"data_tools.commands.{module}").add_arguments(command)
    return parser
