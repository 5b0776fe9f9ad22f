"""`headwater launch ...`: start a run on many ranks, and look after it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import deepspeed_runner, local, manage, submit
from launch.cluster import LocalClusterConfig, load_cluster
from launch.jobs import load_job
from launch.machine import free_port, usable_cores
from launch.plan import LaunchPlan, rank_environment
from launch.record import LaunchRecord, write_record
from pretrain.config import ConfigError
from pretrain.config.arguments import add_run_arguments, non_negative_int, positive_int
from pretrain.config.environment import has_accelerator
from pretrain.config.exit_codes import OK
from pretrain.config.identity import check_run_directory, lock_run_directory

LOCAL_EXAMPLES = """examples:
  headwater launch local --nproc 2 --config configs/gpt/tiny.yaml
  headwater launch local --nproc 4 --config configs/gpt/tiny.yaml --set parallel.tensor_model_parallel_size=2
  headwater launch local --nproc 2 --config configs/bert/tiny.yaml --dry-run
  headwater launch local --nproc 2 --config configs/finetune/classification.yaml

Running the same command again resumes from the newest checkpoint in run_dir. Ctrl-C, SIGTERM, SIGUSR1
and SIGUSR2 save a checkpoint and stop (exit code 75); a second Ctrl-C ends the ranks at once.
"""
SLURM_EXAMPLES = """examples:
  headwater launch slurm --config configs/gpt/1b3.yaml --cluster configs/cluster/slurm-h100.yaml --dry-run
  headwater launch slurm --config configs/gpt/1b3.yaml --cluster configs/cluster/slurm-a100.yaml
  headwater launch slurm ... --array optimizer.lr=1e-4,3e-4 --array seed=1,2     four runs, one job array

The job saves before its time limit and puts itself back into the queue until train_steps is reached.
docs/launching.md tells what happens on each failure.
"""


def main(argv: Sequence[str]) -> int:
    """Run `headwater launch` with the words that follow it; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.backend == "local":
        return _local(args, argv)
    if args.backend == "slurm":
        return submit.launch(args, argv)
    if args.backend == "deepspeed":
        return deepspeed_runner.launch(args, argv)
    return manage.main(args, main)


def _local(args: argparse.Namespace, argv: Sequence[str]) -> int:
    nproc, env = _local_size(args)
    job = load_job(args.config, args.overrides, nproc)
    config = job.config
    check_run_directory(config)
    # A login node may plan a run whose data is mounted elsewhere.
    if not args.dry_run and (wrong := job.data_problems()):
        raise ConfigError(wrong, source=str(args.config))
    shared = rank_environment(
        {**os.environ, **env}, cores=usable_cores(), ranks_per_host=nproc, has_accelerator=has_accelerator()
    )
    plan = LaunchPlan(
        run_dir=Path(config.run_dir),
        config=args.config,
        overrides=tuple(args.overrides),
        python=sys.executable,
        hosts=("127.0.0.1",),
        ranks_per_host=nproc,
        master_port=args.master_port or free_port(),
        env={**env, **shared},
        module=job.module,
    )
    if args.dry_run:
        for rank in plan.ranks:
            print(rank.shell())
        return OK
    lock_run_directory(config.run_dir).close()  # refuse now, before the logs of a running job are touched
    record = LaunchRecord(backend="local", argv=("launch", *argv), directory=os.getcwd())
    write_record(plan.run_dir, record)
    return local.run(plan, args.max_restarts)


def _local_size(args: argparse.Namespace) -> tuple[int, dict[str, str]]:
    """The number of ranks and their variables, from --nproc and --cluster."""
    if args.cluster is None:
        if args.nproc is None:
            raise ConfigError("give --nproc N, the number of ranks, or --cluster FILE")
        return args.nproc, {}
    cluster = load_cluster(args.cluster)
    if not isinstance(cluster, LocalClusterConfig):
        raise ConfigError(f"kind: {cluster.kind}; use `headwater launch slurm`", source=str(args.cluster))
    env = {name: str(value) for name, value in cluster.env.items()}
    return args.nproc or cluster.ranks_per_node, env


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater launch",
        description="Start a run on many ranks, and look after it.",
        allow_abbrev=False,
    )
    backends = parser.add_subparsers(dest="backend", required=True, metavar="COMMAND")
    _add_local(backends)
    _add_slurm(backends)
    deepspeed_runner.add_command(backends)
    manage.add_commands(backends)
    return parser


def _add_local(backends: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = backends.add_parser(
        "local",
        help="ranks on this machine",
        description="Start the ranks of a run here. Config and data are checked before any rank starts.",
        epilog=LOCAL_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--nproc", type=positive_int, metavar="N", help="number of ranks (default: that of --cluster)"
    )
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="cluster configuration, kind: local")
    parser.add_argument(
        "--max-restarts",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="start the ranks again after a crash, a killed rank or a hang, at most N times",
    )
    parser.add_argument(
        "--master-port", type=positive_int, metavar="PORT", help="where the ranks meet (default: a free port)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print each rank's environment and command, start nothing"
    )


def _add_slurm(backends: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = backends.add_parser(
        "slurm",
        help="a job on a SLURM cluster",
        description="Submit a run. Config and data are checked before anything is submitted.",
        epilog=SLURM_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--cluster", type=Path, required=True, metavar="FILE", help="cluster configuration, kind: slurm"
    )
    parser.add_argument(
        "--cluster-set",
        dest="cluster_overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override keys of the cluster configuration, e.g. nodes=2",
    )
    parser.add_argument(
        "--array",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=V1,V2",
        help="a run for each value of a config key, as a job array; repeat it for all combinations",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
