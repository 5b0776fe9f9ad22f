"""`headwater data show`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--split", default="train", help="train (default) or validation")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--document", type=int, default=0, help="number of the first one (default: 0)")
    which.add_argument("--id", help="what the input called it; shows the documents with this id")
    parser.add_argument("--count", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--pieces", action="store_true", help="show the tokenizer's pieces")


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from itertools import islice

    from data_tools.show import numbers_from, numbers_of_id, open_split, show_documents

    manifest = open_split(arguments.corpus, arguments.split)
    if arguments.id is None:
        numbers = numbers_from(manifest, arguments.document)
    else:
        numbers = numbers_of_id(manifest, arguments.id)
    chosen = islice(numbers, arguments.count)
    for line in show_documents(arguments.corpus, manifest, chosen, arguments.pieces):
        print(line)
