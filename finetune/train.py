"""Finetuning entry point: `python -m finetune.train --config FILE`, on every rank."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """examples:
  headwater finetune --config configs/finetune/classification.yaml
  headwater finetune --config FILE --set from_scratch=true --set run_dir=runs/from-scratch
  headwater finetune --config FILE --seeds 1 2 3      run_dir/seed-1 ... and the spread of the scores
  torchrun --nproc_per_node 2 -m finetune.train --config configs/finetune/classification.yaml
  deepspeed --num_gpus 2 --module finetune.train --config configs/finetune/classification.yaml

Running the same command again resumes from the newest checkpoint in run_dir.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the finetuning job that a config describes; returns the exit code."""
    from pretrain.train import parse_arguments

    arguments = parse_arguments(
        "finetune", "Train a checkpoint further for a task.", EXAMPLES, argv, _add_seeds
    )
    from pretrain.config.environment import adopt_place, world_size_from_environment

    adopt_place()
    if arguments.seeds:
        from finetune.sweep import sweep

        return sweep(arguments.config, arguments.overrides, arguments.seeds)
    from finetune.config import load_finetune_config
    from finetune.session import finetune
    from pretrain.config import ConfigError
    from pretrain.stop import StopSignals

    signals = StopSignals()
    config = load_finetune_config(arguments.config, arguments.overrides, world_size_from_environment())
    if not Path(config.pretrained).exists():
        raise ConfigError(f"pretrained: {config.pretrained} does not exist")
    return finetune(config, signals)


def _add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="one run for each, in run_dir/seed-N, one process"
    )


if __name__ == "__main__":
    from pretrain.train import run_main

    sys.exit(run_main(main))
