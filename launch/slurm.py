"""A run on a SLURM cluster as the text of a batch script. Pure: what depends on the machine comes in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import SlurmClusterConfig
from launch.jobs import size_problems
from pretrain.config import ConfigError, JobConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayTask:
    """One run of a job array."""

    overrides: tuple[str, ...]
    run_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmPlan:
    """Everything that a batch script depends on."""

    cluster: SlurmClusterConfig
    config: Path
    overrides: tuple[str, ...]
    run_dir: Path
    """As the config has it, relative to `directory` or absolute."""
    directory: Path
    """Working directory of the job, where relative paths begin; absolute."""
    python: str
    """The interpreter on the nodes, outside of a container."""
    node_counts: tuple[int, ...]
    """Numbers of nodes that the global batch can be spread over, ascending."""
    lead_seconds: int
    min_disk_gb: int = 0
    tasks: tuple[ArrayTask, ...] = ()
    """The runs of a job array; empty for a single run."""
    module: str = "pretrain.train"

    @property
    def script_path(self) -> Path:
        """Where the script is kept: in the run directory."""
        return self.directory / self.run_dir / "launch.sbatch"

    @property
    def log_path(self) -> Path:
        """Output of the job, with SLURM's own placeholders."""
        return self.directory / self.run_dir / "logs" / ("slurm-%A_%a.log" if self.tasks else "slurm-%j.log")


def usable_node_counts(config: JobConfig, cluster: SlurmClusterConfig) -> tuple[int, ...]:
    """The numbers of nodes, of those the cluster config allows, over which the global batch divides.

    Raises:
        ConfigError: If the smallest number is not among them: an attempt that gets no more could not run.
    """
    counts = range(cluster.min_nodes, cluster.max_nodes + 1)
    problems = {count: size_problems(config, count * cluster.ranks_per_node) for count in counts}
    if problems[cluster.min_nodes]:
        ranks = cluster.min_nodes * cluster.ranks_per_node
        text = f"with nodes: {cluster.min_nodes} ({ranks} ranks): "
        raise ConfigError([text + problem for problem in problems[cluster.min_nodes]])
    return tuple(count for count in counts if not problems[count])


def render(plan: SlurmPlan) -> str:
    """The batch script: short, commented, to be edited and submitted by hand as well."""
    return "\n".join([*_header(plan), "", *_environment(plan), "", *_command(plan), ""])


def _header(plan: SlurmPlan) -> Iterator[str]:
    cluster = plan.cluster
    ranks = f"{cluster.nodes} node{'' if cluster.nodes == 1 else 's'} x {cluster.ranks_per_node} ranks"
    yield "#!/bin/bash"
    yield f"# {plan.run_dir.name}: {ranks}. Written by `headwater launch slurm`; you may edit it and run"
    yield f"#   sbatch {_quote(str(plan.script_path))}"
    yield _directive("job-name", plan.run_dir.name)
    yield from _size(cluster)
    for option in ("partition", "account", "qos"):
        if (value := getattr(cluster, option)) is not None:
            yield _directive(option, value)
    yield _directive("time", cluster.time_limit)
    yield "# So many seconds before the limit the ranks save, and the job goes back into the queue."
    yield _directive("signal", f"B:USR1@{plan.lead_seconds}")
    yield "#SBATCH --requeue"
    yield "#SBATCH --open-mode=append"
    yield _directive("output", _escape_percent(plan.log_path))
    if plan.tasks:
        yield _directive("array", f"0-{len(plan.tasks) - 1}")
    yield from (f"#SBATCH {option}" for option in cluster.sbatch_options)


def _size(cluster: SlurmClusterConfig) -> Iterator[str]:
    yield _directive("nodes", cluster.nodes)
    if cluster.min_nodes == cluster.max_nodes:
        yield _directive("ntasks-per-node", cluster.ranks_per_node)
        yield _directive("cpus-per-task", cluster.cpus_per_rank)
    else:
        # After a requeue SLURM insists on the number of tasks that the first start had.
        yield "# With a range of nodes: CPUs of a node, not tasks, so that the number of nodes stays free."
        yield _directive("mincpus", cluster.ranks_per_node * cluster.cpus_per_rank)
    if cluster.gpus_per_node:
        yield _directive("gpus-per-node", cluster.gpus_per_node)


def _environment(plan: SlurmPlan) -> Iterator[str]:
    yield "set -eo pipefail"
    yield f"cd {_quote(str(plan.directory))}"
    if plan.cluster.setup.strip():
        yield from plan.cluster.setup.strip().splitlines()
    for name, value in plan.cluster.env.items():
        yield f"export {name}={_quote(str(value))}"


def _command(plan: SlurmPlan) -> Iterator[str]:
    if plan.tasks:
        yield "# The runs of the array."
        yield 'case "$SLURM_ARRAY_TASK_ID" in'
        for index, task in enumerate(plan.tasks):
            words = " ".join(f"--set {_quote(text)}" for text in task.overrides)
            yield f"    {index}) run_dir={_quote(task.run_dir)} run=({words}) ;;"
        yield '    *) echo "no run for array task $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;'
        yield "esac"
    else:
        yield f"run_dir={_quote(str(plan.run_dir))}"
    yield "# How Python starts on the nodes; more options of srun go here."
    yield "start=("
    yield "    srun --kill-on-bad-exit=1 --distribution=block"
    yield from (f"    {_quote(word)}" for word in _start(plan))
    yield ")"
    yield "# What every rank runs; launch.slurm_task tells it its place (RANK, MASTER_ADDR, ...)."
    yield "ranks=("
    yield f"    -m {plan.module} --config {_quote(str(plan.config))}"
    yield from (f"    --set {_quote(text)}" for text in plan.overrides)
    if plan.tasks:
        yield '    "${run[@]}" --set "run_dir=$run_dir"'
    yield ")"
    yield "# Checks the nodes, runs the ranks, passes signals on, requeues until the run is complete."
    yield "# By exec: SLURM signals the process of this script, and bash does not listen while it waits."
    yield f'exec {_quote(plan.python)} -m launch.slurm_job --run-dir "$run_dir" \\'
    yield from (f"    {line} \\" for line in _job_options(plan))
    yield '    -- "${start[@]}" -- "${ranks[@]}"'


def _job_options(plan: SlurmPlan) -> Iterator[str]:
    cluster, wanted = plan.cluster, plan.cluster.preflight
    counts = ",".join(str(count) for count in plan.node_counts)
    yield f"--node-counts {counts} --ranks-per-node {cluster.ranks_per_node}"
    yield f"--max-failures {cluster.max_failures}"
    checks = [f"--gpus {cluster.gpus_per_node or 0}", f"--min-disk-gb {plan.min_disk_gb}"]
    checks.append(f"--min-memory-gb {wanted.min_memory_gb:g}")
    checks.append(f"--max-clock-skew {wanted.max_clock_skew_seconds:g} --timeout {wanted.timeout_seconds}")
    checks.append(f"--all-reduce {wanted.all_reduce_seconds}")
    yield " ".join(checks)
    if wanted.scratch_paths:
        paths = " ".join(f"--scratch {_quote(path)}" for path in wanted.scratch_paths)
        yield f"{paths} --min-scratch-gb {wanted.min_scratch_gb:g}"


def _start(plan: SlurmPlan) -> Sequence[str]:
    cluster, container = plan.cluster, plan.cluster.container
    # srun has not taken --cpus-per-task from sbatch since SLURM 22.05.
    words = [f"--cpus-per-task={cluster.cpus_per_rank}"]
    if cluster.cpu_bind:
        words.append(f"--cpu-bind={cluster.cpu_bind}")
    words += cluster.srun_options
    if container is None:
        return [*words, plan.python]
    if container.runtime == "pyxis":
        words += [f"--container-image={container.image}", f"--container-workdir={plan.directory}"]
        if container.mounts:
            words.append(f"--container-mounts={','.join(container.mounts)}")
        return [*words, container.python]
    words += ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else []), f"--pwd={plan.directory}"]
    words += [word for mount in container.mounts for word in ("--bind", mount)]
    return [*words, container.image, container.python]


def _quote(text: str) -> str:
    """A word for bash, taken literally; also quoted where only a reader (or shellcheck) would stumble."""
    if re.fullmatch(r"[\w@%+:./-][\w@%+=:./-]*", text, re.ASCII):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _directive(option: str, value: object) -> str:
    text = str(value)
    if re.search(r"[^\w@%+=:,./~-]", text):
        # sbatch splits a directive at blanks and ends it at #, unless they are quoted; it knows no `$`.
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{option}={text}"


def _escape_percent(path: Path) -> str:
    """A path with sbatch's placeholders in its name only."""
    return str(path.parent).replace("%", "%%") + "/" + path.name
