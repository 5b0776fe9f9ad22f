"""Arguments that the commands about a finetuned checkpoint share."""

from __future__ import annotations

import argparse
from pathlib import Path

from pretrain.config.arguments import positive_int


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint, of which every command says the same."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="run directory (newest checkpoint, with a selection the best) or step directory",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint, --column and --batch-size."""
    add_checkpoint(parser)
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KEY=NAME",
        help="a column of this file that is called otherwise than in training, e.g. text=review; repeatable",
    )
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N", help="default: 32")
