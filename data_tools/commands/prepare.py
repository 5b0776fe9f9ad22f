"""`headwater data prepare`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from data_tools.commands.common import add_input_arguments, state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_input_arguments(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, help="model file of `data tokenizer`")
    parser.add_argument("--out", type=Path, required=True, help="corpus directory to create")
    parser.add_argument("--name", help="name of the corpus (default: that of the directory)")
    parser.add_argument("--sentences", action="store_true", help="record sentences, which BERT needs")
    parser.add_argument(
        "--validation-fraction", type=float, default=0.01, help="share of the documents (default: 0.01)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes; the result does not depend on it")
    parser.add_argument(
        "--block-bytes", type=int, default=1 << 20, help="bytes of tokens in a block (default: 1 MiB)"
    )
    parser.add_argument(
        "--shard-bytes", type=int, help="bytes of input per shard (default: a 16th, within 16 and 512 MiB)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.prepare import QUARANTINE_NAME, PrepareOptions, prepare

    options = PrepareOptions(
        name=arguments.name or arguments.out.resolve().name,
        json_key=arguments.json_key,
        sentences=arguments.sentences,
        validation_fraction=arguments.validation_fraction,
        seed=arguments.seed,
        block_bytes=arguments.block_bytes,
        shard_bytes=arguments.shard_bytes,
    )
    start = time.monotonic()
    result = prepare(
        arguments.input,
        arguments.tokenizer,
        arguments.out,
        options,
        arguments.workers,
        arguments.max_bad_fraction,
    )
    seconds = time.monotonic() - start
    lines, splits = result.record["lines"], result.record["splits"]
    parts = [f"{split} {t['documents']:,} documents, {t['tokens']:,} tokens" for split, t in splits.items()]
    if result.fresh:
        read = sum(entry["bytes"] for entry in result.record["inputs"])
        parts.append(f"{read / 1e6:.1f} MB in {seconds:.1f} s ({read / 1e6 / seconds:.1f} MB/s)")
    print(f"{arguments.out}: {state(result.fresh)}" + "; ".join(parts))
    if lines["bad"] or lines["empty"]:
        print(
            f"left out: {lines['empty']} empty documents, {lines['bad']} bad lines"
            + (f" (see {arguments.out / QUARANTINE_NAME})" if lines["bad"] else ""),
            file=sys.stderr,
        )
    if arguments.validation_fraction and "validation" not in splits:
        print("no document fell into the validation split: raise --validation-fraction", file=sys.stderr)
