"""`headwater data merge`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("corpora", nargs="+", type=Path, help="two or more corpora of the same tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="corpus directory to create")
    parser.add_argument("--name", help="name of the corpus (default: that of the directory)")
    parser.add_argument(
        "--copy", action="store_true", help="copy the shards (default: hard links, which take no room)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.merge import merge_corpora

    name = arguments.name or arguments.out.resolve().name
    record = merge_corpora(arguments.corpora, arguments.out, name, arguments.copy)
    parts = [
        f"{split} {totals['documents']:,} documents, {totals['tokens']:,} tokens"
        for split, totals in record["splits"].items()
    ]
    print(f"{arguments.out}: {'; '.join(parts)}")
