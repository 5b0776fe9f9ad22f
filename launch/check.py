"""`headwater check`: what would stop a run, found before any rank starts and without a GPU."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.check_cluster import cluster_findings, smallest_world_size
from launch.cluster import load_cluster
from launch.estimate import checkpoint_bytes, rank_memory, readable_bytes, readable_count
from launch.findings import Finding, has_errors, report
from launch.jobs import JobPlan, load_job
from pretrain.config import ConfigError, JobConfig, RunConfig
from pretrain.config.arguments import add_run_arguments, positive_int
from pretrain.config.derive import (
    data_parallel_size,
    gradient_accumulation_steps,
    parameter_count,
    tokens_per_step,
    train_tokens,
)
from pretrain.config.identity import check_run_directory
from pretrain.config.model import ModelConfig

EXAMPLES = """examples:
  headwater check --config configs/gpt/tiny.yaml
  headwater check --config configs/bert/tiny.yaml --nproc 4 --set parallel.tensor_model_parallel_size=2
  headwater check --config configs/gpt/1b3.yaml --cluster configs/cluster/slurm-h100.yaml
  headwater check --config configs/finetune/classification.yaml --nproc 2

exit codes: 0 no errors (warnings do not count), 2 the run cannot start as it is
"""


def main(argv: Sequence[str]) -> int:
    """Print one report about a run; returns the exit code."""
    args = _parser().parse_args(argv)
    title, findings = f"{args.config}", []
    try:
        cluster = load_cluster(args.cluster) if args.cluster else None
        nproc = args.nproc or (smallest_world_size(cluster) if cluster else None)
        job = load_job(args.config, args.overrides, nproc)
        world_size = nproc or job.config.parallel.tensor_model_parallel_size
        if nproc is None:
            job = load_job(args.config, args.overrides, world_size)
        title = f"{args.config} on {world_size} rank{'s' if world_size > 1 else ''}"
    except ConfigError as error:
        where = "" if error.source in ("", str(args.config)) else f"{error.source}: "
        findings = [Finding("error", "config", where + problem) for problem in error.problems]
    else:
        findings = run_findings(job, world_size)
        if cluster:
            findings += cluster_findings(job.config, cluster)
    print(report(title, findings))
    return 2 if has_errors(findings) else 0


def run_findings(job: JobPlan, world_size: int) -> list[Finding]:
    """All checks of a valid config; the memory of finetuning is not estimated, its batches vary in length."""
    config = job.config
    findings = [_run_directory_finding(config), _batch_finding(config, world_size), *job.data_findings()]
    if isinstance(config, RunConfig):
        findings.append(_memory_finding(config, world_size))
    return [*findings, disk_finding(config, job.model)] if job.model else findings


def _run_directory_finding(config: JobConfig) -> Finding:
    try:
        check_run_directory(config)
    except ConfigError as error:
        return Finding("error", "config", str(error))
    place = _existing(config)
    if not place.is_dir():
        return Finding("error", "config", f"run_dir: {place} is no directory; choose another run_dir")
    return Finding("ok", "config", "valid")


def _existing(config: JobConfig) -> Path:
    """What is there of the path to run_dir."""
    place = Path(config.run_dir).absolute()
    while not place.exists():
        place = place.parent
    return place


def _batch_finding(config: JobConfig, world_size: int) -> Finding:
    batch, tensor_ranks = config.batch, config.parallel.tensor_model_parallel_size
    data_ranks = data_parallel_size(config, world_size)
    accumulation = gradient_accumulation_steps(config, world_size)
    return Finding(
        "ok",
        "batch",
        f"{world_size} = TP {tensor_ranks} x DP {data_ranks}; {batch.global_batch_size} samples a step = "
        f"micro-batch {batch.micro_batch_size} x DP {data_ranks} x {accumulation} accumulated; "
        f"{readable_count(tokens_per_step(config))} tokens a step, "
        f"{readable_count(train_tokens(config))} in all",
    )


def _memory_finding(config: RunConfig, world_size: int) -> Finding:
    memory = rank_memory(config, world_size)
    parts = (
        f"weights {readable_bytes(memory.weights)}, gradients {readable_bytes(memory.gradients)}, "
        f"optimizer {readable_bytes(memory.optimizer)}, activations {readable_bytes(memory.activations)}"
    )
    return Finding(
        "ok",
        "memory",
        f"{readable_count(parameter_count(config.model))} parameters; about {readable_bytes(memory.total)} "
        f"a rank with ZeRO {config.parallel.zero_stage}: {parts}",
    )


def disk_finding(config: JobConfig, model: ModelConfig) -> Finding:
    """Whether the checkpoints that the run keeps fit on the file system of run_dir."""
    one = checkpoint_bytes(model)
    # While a new checkpoint is written the old ones are still there.
    wanted = one * (config.checkpoint.keep_last + 1)
    place = _existing(config)
    free = shutil.disk_usage(place).free
    text = (
        f"a checkpoint is {readable_bytes(one)}, keep_last {config.checkpoint.keep_last} needs "
        f"{readable_bytes(wanted)}, {readable_bytes(free)} are free at {place}"
    )
    if free < one:
        return Finding("error", "disk", f"{text}; free some or move run_dir")
    return Finding("warning" if free < wanted else "ok", "disk", text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater check",
        description="Check a run before it starts: config, batch, data, memory, disk. Needs no GPU.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--nproc", type=positive_int, metavar="N", help="number of ranks (default: the tensor-parallel size)"
    )
    parser.add_argument(
        "--cluster", type=Path, metavar="FILE", help="cluster configuration: nodes, device memory, time limit"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
