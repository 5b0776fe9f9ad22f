"""Options and words that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Where documents come from, and how many bad records are borne."""
    parser.add_argument(
        "--input", nargs="+", type=Path, required=True, help="JSON-lines files, or directories of *.jsonl"
    )
    parser.add_argument("--json-key", default="text", help="key of the text in each line (default: text)")
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        help="give up if more of the lines hold no document (default: 0.01)",
    )
    parser.add_argument("--seed", type=int, default=1234, help="(default: 1234)")


def state(fresh: bool) -> str:
    """How a result begins that was there already."""
    return "" if fresh else "already complete: "
