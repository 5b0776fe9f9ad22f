"""Pretraining entry point: `python -m pretrain.train --config FILE`, on every rank.

Started by `headwater launch`, torchrun, the deepspeed launcher, or by hand as one process.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from pretrain.config import exit_codes
from pretrain.config.arguments import add_run_arguments

EXAMPLES = """examples:
  headwater pretrain --config configs/gpt/tiny.yaml
  headwater launch local --nproc 2 --config configs/gpt/tiny.yaml --set parallel.tensor_model_parallel_size=2
  torchrun --nproc_per_node 2 -m pretrain.train --config configs/gpt/tiny.yaml
  deepspeed --num_gpus 2 --module pretrain.train --config configs/gpt/tiny.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train the run that a config describes; returns the exit code."""
    arguments = parse_arguments(
        "pretrain", "Train the run that a config describes, or go on with it.", EXAMPLES, argv
    )
    from pretrain.config import load_config
    from pretrain.config.environment import adopt_place, world_size_from_environment
    from pretrain.stop import StopSignals

    signals = StopSignals()
    adopt_place()
    # A wrong config is answered before torch is imported.
    config = load_config(arguments.config, arguments.overrides, world_size_from_environment())
    from pretrain.session import pretrain

    return pretrain(config, signals)


def parse_arguments(
    name: str,
    description: str,
    examples: str,
    argv: Sequence[str] | None,
    add_more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """The arguments of every training command: --config, --set, and --local_rank, which launchers add.

    Args:
        name: Of the command.
        description: Of the command.
        examples: For --help.
        argv: The words behind the command's name.
        add_more: Adds the command's own.
    """
    parser = argparse.ArgumentParser(
        prog=f"headwater {name}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS
    )  # ranks read LOCAL_RANK
    add_more(parser)
    return parser.parse_args(argv)


def run_main(main: Callable[[], int]) -> int:
    """Run a rank's main function: a user's error becomes one message and its exit code, not a traceback."""
    try:
        code = main()
    except Exception as error:
        code = getattr(error, "exit_code", 0)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            code = exit_codes.STORAGE
        if not code:
            raise
        rank = os.environ.get("RANK", "0")
        print(
            f"headwater: error: {'' if rank == '0' else f'[rank {rank}] '}{error}",
            file=sys.stderr,
            flush=True,
        )
    return code


if __name__ == "__main__":
    sys.exit(run_main(main))
