"""`headwater data stats`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    import json

    from data_tools.stats import corpus_stats, format_stats

    stats = corpus_stats(arguments.corpus)
    print(json.dumps(stats, indent=1) if arguments.json else format_stats(stats))
