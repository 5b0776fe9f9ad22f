"""`headwater data merge`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.commands.common import state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("corpora", nargs="+", type=Path, metavar="CORPUS", help="corpora of one tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="corpus directory to create")
    parser.add_argument("--name", help="name of the corpus (default: that of the directory)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true", help="copy the shards (default: hard links if possible)")
    how.add_argument("--link", action="store_true", help="fail where a hard link is not possible")


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.merge import Transfer, merge_corpora

    name = arguments.name or arguments.out.resolve().name
    transfer: Transfer = "copy" if arguments.copy else "link" if arguments.link else "auto"
    record, fresh = merge_corpora(arguments.corpora, arguments.out, name, transfer)
    parts = [
        f"{split} {t['documents']:,} documents, {t['tokens']:,} tokens in {t['shards']} shard(s)"
        for split, t in record["splits"].items()
    ]
    print(f"{arguments.out}: {state(fresh)}" + "; ".join(parts))
