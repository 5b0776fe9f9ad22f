"""`headwater data report`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("corpus", type=Path)
    parser.add_argument(
        "--out", type=Path, help="file to write (default: CORPUS-report.html beside the corpus)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.report import write_report

    corpus: Path = arguments.corpus.resolve()
    out = arguments.out or corpus.parent / f"{corpus.name}-report.html"
    write_report(corpus, out)
    print(out)
