"""Arguments that the commands about a finetuned checkpoint share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint, --column and --batch-size."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="run directory (newest checkpoint) or step directory"
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KEY=NAME",
        help="a column of this file that is called otherwise than in training, e.g. text=review; repeatable",
    )
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="default: 32")


def positive(text: str) -> int:
    """Parse a count that is at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
