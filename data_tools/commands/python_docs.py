"""`headwater data python-docs`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.commands.common import state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--out", type=Path, required=True, help="directory to create")


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.python_corpus import build_python_corpus

    record, fresh = build_python_corpus(arguments.out)
    classes = record["classification"]["train"]
    examples = {split: sum(found.values()) for split, found in record["classification"].items()}
    size = f"{record['documents']} documents, {record['text_bytes'] / 1e6:.2f} MB"
    print(
        f"{arguments.out}: {state(fresh)}{size}; "
        f"classification: {examples['train']} train and {examples['validation']} validation docstrings "
        f"of {len(classes)} packages"
    )
