"""`headwater data show`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--split", default="train", help="train (default) or validation")
    parser.add_argument("--document", type=int, default=0, help="number of the first one (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--pieces", action="store_true", help="show the tokenizer's pieces")


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.show import show_documents

    documents = show_documents(
        arguments.corpus, arguments.split, arguments.document, arguments.count, arguments.pieces
    )
    for line in documents:
        print(line)
