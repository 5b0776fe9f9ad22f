"""`headwater data verify`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from data_tools.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument(
        "--repair-manifest",
        action="store_true",
        help="first make manifest.json and blocks.npy again from the shards",
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.verify import verify_corpus

    if arguments.repair_manifest:
        from data_tools.repair import repair_manifests

        for note in repair_manifests(arguments.corpus):
            print(note)
    start = time.monotonic()
    problems = verify_corpus(arguments.corpus, arguments.workers)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        advice = "restore it or prepare again"
        raise DataError(f"{arguments.corpus} has {len(problems)} problem(s), listed above: {advice}")
    print(f"{arguments.corpus}: every file is as it was written ({time.monotonic() - start:.1f} s)")
