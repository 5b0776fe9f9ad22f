"""Finetuning entry point: `python -m finetune.train --config FILE`, on every rank."""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXAMPLES = """examples:
  headwater finetune --config configs/finetune/classification.yaml
  headwater finetune --config FILE --set from_scratch=true --set run_dir=runs/from-scratch
  torchrun --nproc_per_node 2 -m finetune.train --config configs/finetune/classification.yaml
  deepspeed --num_gpus 2 --module finetune.train --config configs/finetune/classification.yaml

Running the same command again resumes from the newest checkpoint in run_dir.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the finetuning job that a config describes; returns the exit code."""
    from pretrain.train import parse_arguments

    arguments = parse_arguments("finetune", "Train a checkpoint further for a task.", EXAMPLES, argv)
    from finetune.config import load_finetune_config
    from finetune.session import finetune
    from pretrain.config.environment import adopt_place, world_size_from_environment
    from pretrain.stop import StopSignals

    signals = StopSignals()
    adopt_place()
    config = load_finetune_config(arguments.config, arguments.overrides, world_size_from_environment())
    return finetune(config, signals)


if __name__ == "__main__":
    from pretrain.train import run_main

    sys.exit(run_main(main))
