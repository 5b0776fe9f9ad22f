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


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.verify import verify_corpus

    start = time.monotonic()
    problems = verify_corpus(arguments.corpus)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        advice = "restore it or prepare again"
        raise DataError(f"{arguments.corpus} has {len(problems)} problem(s), listed above: {advice}")
    print(f"{arguments.corpus}: every file is as it was written ({time.monotonic() - start:.1f} s)")
