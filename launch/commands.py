"""`headwater launch ...`: start a run on many ranks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import local
from launch.arguments import add_run_arguments, positive_int
from launch.check_data import data_findings
from launch.machine import free_port, has_accelerator, usable_cores
from launch.plan import LaunchPlan, rank_environment
from pretrain.config import ConfigError, load_config
from pretrain.config.identity import check_run_directory, lock_run_directory

EXAMPLES = """examples:
  headwater launch local --nproc 2 --config configs/gpt/tiny.yaml
  headwater launch local --nproc 4 --config configs/gpt/tiny.yaml --set parallel.tensor_model_parallel_size=2
  headwater launch local --nproc 2 --config configs/bert/tiny.yaml --dry-run

Running the same command again resumes from the newest checkpoint in run_dir. Ctrl-C, SIGTERM and SIGUSR1
save a checkpoint and stop (exit code 75); a second Ctrl-C ends the ranks at once.
"""


def main(argv: Sequence[str]) -> int:
    """Run `headwater launch` with the words that follow it; returns the exit code."""
    args = _parser().parse_args(argv)
    config = load_config(args.config, args.overrides, world_size=args.nproc)
    check_run_directory(config)
    wrong = [finding.text for finding in data_findings(config) if finding.level == "error"]
    if wrong and not args.dry_run:  # a login node may plan a run whose data is mounted elsewhere
        raise ConfigError(wrong, source=str(args.config))
    plan = LaunchPlan(
        run_dir=Path(config.run_dir),
        config=args.config,
        overrides=tuple(args.overrides),
        python=sys.executable,
        hosts=("127.0.0.1",),
        ranks_per_host=args.nproc,
        master_port=args.master_port or free_port(),
        env=rank_environment(
            os.environ, cores=usable_cores(), ranks_per_host=args.nproc, has_accelerator=has_accelerator()
        ),
    )
    if args.dry_run:
        for rank in plan.ranks:
            print(rank.shell())
        return local.EXIT_OK
    lock_run_directory(config.run_dir).close()  # refuse now, before the logs of a running job are touched
    return local.run(plan)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater launch", description="Start a pretraining run on many ranks.", allow_abbrev=False
    )
    backends = parser.add_subparsers(dest="backend", required=True, metavar="BACKEND")
    local_parser = backends.add_parser(
        "local",
        help="ranks on this machine",
        description="Start the ranks of a run here. Config and data are checked before any rank starts.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_arguments(local_parser)
    local_parser.add_argument(
        "--nproc", type=positive_int, required=True, metavar="N", help="number of ranks"
    )
    local_parser.add_argument(
        "--master-port", type=positive_int, metavar="PORT", help="where the ranks meet (default: a free port)"
    )
    local_parser.add_argument(
        "--dry-run", action="store_true", help="print each rank's environment and command, start nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
