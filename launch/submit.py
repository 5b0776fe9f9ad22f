"""`headwater launch slurm`: a run config and a cluster config -> a batch script, submitted and recorded."""

from __future__ import annotations

import argparse
import itertools
import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch import slurm_control
from launch.cluster import SlurmClusterConfig, load_cluster, time_limit_seconds
from launch.estimate import checkpoint_bytes
from launch.jobs import JobPlan, load_job
from launch.lead_time import lead_seconds
from launch.record import FILE_NAME, LaunchRecord, read_record, write_record
from launch.slurm import ArrayTask, SlurmPlan, render, usable_node_counts
from pretrain.config import ConfigError
from pretrain.config.identity import check_run_directory

MAX_ARRAY = 1000
"""The usual MaxArraySize of SLURM is 1001."""

LIVING = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD")


def launch(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Submit a run, or with --dry-run print its script; returns the exit code.

    Args:
        args: Parsed words of `headwater launch slurm`.
        argv: The same words as they were given, for the record.
    """
    cluster = load_cluster(args.cluster, args.cluster_overrides)
    if not isinstance(cluster, SlurmClusterConfig):
        raise ConfigError("kind: local; `headwater launch local` runs there", source=str(args.cluster))
    job = load_job(args.config, args.overrides)
    tasks = array_tasks(job.config.run_dir, args.array)
    jobs = [load_job(args.config, task_overrides(args.overrides, task)) for task in tasks] or [job]
    plan = make_plan(args, jobs, cluster, tasks, Path(job.config.run_dir))
    for one in jobs:
        check_run_directory(one.config)
        if not args.dry_run and (wrong := one.data_problems()):
            raise ConfigError(wrong, source=str(args.config))
    if args.dry_run:
        print(render(plan), end="")
        return 0
    return _submit(plan, ("launch", *argv))


def make_plan(
    args: argparse.Namespace,
    jobs: Sequence[JobPlan],
    cluster: SlurmClusterConfig,
    tasks: tuple[ArrayTask, ...],
    run_dir: Path,
) -> SlurmPlan:
    """What the script depends on, read from the configs, the run's earlier attempts and this process.

    All runs of an array share one script, so it takes the numbers of nodes that suit each of them.
    """
    counts = [set(usable_node_counts(job.config, cluster)) for job in jobs]
    lead = cluster.signal_lead_seconds
    if lead == "auto":
        lead = lead_seconds(run_dir, time_limit_seconds(cluster.time_limit))
    return SlurmPlan(
        cluster=cluster,
        config=args.config,
        overrides=tuple(args.overrides),
        run_dir=run_dir,
        directory=Path.cwd(),
        python=cluster.python or sys.executable,
        node_counts=tuple(sorted(set.intersection(*counts))),
        lead_seconds=lead,
        min_disk_gb=max(math.ceil(checkpoint_bytes(job.model) / 1e9) if job.model else 0 for job in jobs),
        tasks=tasks,
        module=jobs[0].module,
    )


def array_tasks(run_dir: str, sweeps: Sequence[str]) -> tuple[ArrayTask, ...]:
    """The runs of `--array key=v1,v2 ...`: every combination, each with a run directory of its own.

    Raises:
        ConfigError: If a text has no values, or two runs would share a directory.
    """
    choices: list[list[str]] = []
    for text in sweeps:
        key, equals, values = text.partition("=")
        if not equals or not key or not all(values.split(",")):
            raise ConfigError(
                f"--array {text!r}: write section.key=value,value, for example optimizer.lr=1e-3,3e-4"
            )
        if key == "run_dir" or any(choice[0].startswith(f"{key}=") for choice in choices):
            why = (
                "follows from the other keys"
                if key == "run_dir"
                else "is given twice; write all its values into one"
            )
            raise ConfigError(f"--array {text!r}: {key} {why}")
        choices.append([f"{key}={value}" for value in values.split(",")])
    if not choices:
        return ()
    tasks = []
    for overrides in itertools.product(*choices):
        name = ",".join(_directory_name(text) for text in overrides)
        tasks.append(ArrayTask(overrides=overrides, run_dir=f"{run_dir}/{name}"))
    if len({task.run_dir for task in tasks}) < len(tasks):
        raise ConfigError("--array: two of its runs would share a run directory; give each value once")
    if len(tasks) > MAX_ARRAY:
        raise ConfigError(f"--array: {len(tasks)} runs, {MAX_ARRAY} at most")
    return tuple(tasks)


def _directory_name(override: str) -> str:
    key, _, value = override.partition("=")
    return re.sub(r"[^\w.+=-]", "_", f"{key.rpartition('.')[2]}={value}")


def task_overrides(overrides: Sequence[str], task: ArrayTask) -> list[str]:
    """The overrides of one run of an array."""
    return [*overrides, *task.overrides, f"run_dir={task.run_dir}"]


def _submit(plan: SlurmPlan, argv: tuple[str, ...]) -> int:
    _refuse_living_job(plan)
    for path in (plan.script_path.parent, plan.log_path.parent):
        path.mkdir(parents=True, exist_ok=True)
    plan.script_path.write_text(render(plan), encoding="utf-8")
    job = slurm_control.submit(str(plan.script_path))
    record = LaunchRecord(
        backend="slurm", argv=argv, directory=str(plan.directory), job_id=job, script=str(plan.script_path)
    )
    write_record(plan.directory / plan.run_dir, record)
    for index, task in enumerate(plan.tasks):
        write_record(plan.directory / task.run_dir, replace(record, job_id=f"{job}_{index}"))
    print(_told(plan, job))
    return 0


def _refuse_living_job(plan: SlurmPlan) -> None:
    run_dir = plan.directory / plan.run_dir
    if not (run_dir / FILE_NAME).exists():
        return
    job = read_record(run_dir).job_id
    states = [fields["JobState"] for fields in slurm_control.all_fields(job)] if job else []
    if state := next((state for state in states if state in LIVING), None):
        raise ConfigError(
            f"run_dir: job {job} of {plan.run_dir} is {state.lower()} already; let it go on or end it first: "
            f"headwater launch stop {plan.run_dir}"
        )


def _told(plan: SlurmPlan, job: str) -> str:
    lines = [f"submitted job {job}: {plan.script_path}"]
    if plan.tasks:
        lines += [f"  {job}_{index}  {task.run_dir}" for index, task in enumerate(plan.tasks)]
    shown = shlex.quote(plan.tasks[0].run_dir if plan.tasks else str(plan.run_dir))
    lines += [
        f"watch:  headwater launch status {shown}",
        f"        headwater launch logs -f {shown}",
        f"stop:   headwater launch stop {shown}      (saves first)",
    ]
    return "\n".join(lines)
