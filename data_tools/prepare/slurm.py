"""Submit a plan's tasks to SLURM: a job array for each stage, each waiting for the one before."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError
from data_tools.prepare.lock import hold_directory
from data_tools.prepare.plan import FINISH, Plan
from data_tools.prepare.run import begin, find_complete
from data_tools.prepare.work import Work

_LARGEST_ARRAY = 1000  # the usual MaxArraySize is 1001
_JOBS_NAME = "slurm-jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmOptions:
    """How to submit.

    Attributes:
        sbatch: more options for every job, e.g. "--partition=cpu --time=4:00:00".
        array_size: jobs of an array at most; each runs an equal share of a stage's tasks.
        workers: processes, and CPUs, of each job.
        max_bad_fraction, restart: as in `RunOptions`.
    """

    sbatch: str = ""
    array_size: int = _LARGEST_ARRAY
    workers: int = 1
    max_bad_fraction: float = 0.01
    restart: bool = False


def submit(plan: Plan, tokenizer: Path, out: Path, options: SlurmOptions) -> list[str]:
    """Submit the stages that are not finished; what is finished already is not run again.

    Returns:
        The job ids, in order of the stages; none if the corpus is complete.

    Raises:
        DataError: SLURM refuses, jobs of an earlier submission still wait or run, or as `begin`.
    """
    if shutil.which("sbatch") is None:
        raise DataError("no sbatch on PATH: run this on a machine that submits to SLURM")
    work = Work.of(out)
    if find_complete(plan, out) is not None:
        work.remove_published()
        return []
    with hold_directory(work.path, shared=True) as hold:
        _refuse_living_jobs(work)
        begin(work, hold, plan, tokenizer, options.restart)
        logs_directory(out).mkdir(exist_ok=True)
        jobs: list[str] = []
        for stage, count in plan.stages():
            missing = len(work.missing(stage, count))
            if missing or stage == FINISH:  # which also gives the corpus its name
                _submit_stage(work, stage, max(missing, 1), options, jobs)
            if jobs and hold.alone:
                hold.share()  # with the jobs, which are on record now
    return jobs


def _submit_stage(work: Work, stage: str, tasks: int, options: SlurmOptions, jobs: list[str]) -> None:
    """Submit a stage after the last of `jobs`, and add its job to them.

    Raises:
        DataError: SLURM refuses; the earlier jobs, of no use without the later ones, are cancelled.
    """
    size = min(tasks, options.array_size, _LARGEST_ARRAY)
    result = _run(job_command(work, stage, size, options, jobs[-1:]))
    if result.returncode:
        if jobs:
            _run(["scancel", *jobs])
        words = "; ".join((result.stderr.strip() or result.stdout.strip()).splitlines())
        raise DataError(f"sbatch refused the job: {words}")
    jobs.append(result.stdout.strip().split(";")[0])
    (work.path / _JOBS_NAME).write_text("\n".join(jobs))


def logs_directory(out: Path) -> Path:
    """Where the jobs write what they print."""
    return out.parent / f"{out.name}.slurm-logs"


def job_command(work: Work, stage: str, size: int, options: SlurmOptions, after: Sequence[str]) -> list[str]:
    """The sbatch command of one stage."""
    task = [sys.executable, "-m", "data_tools.prepare.tasks", str(work.path), stage]
    task += ["--task-count", str(size), "--workers", str(options.workers)]
    task += ["--max-bad-fraction", str(options.max_bad_fraction)]
    script = f"exec {shlex.join(task)} --task-index $SLURM_ARRAY_TASK_ID"
    logs = str(logs_directory(work.out)).replace("%", "%%")
    return [
        "sbatch",
        "--parsable",
        f"--job-name=headwater-{stage}",
        f"--array=0-{size - 1}",
        f"--cpus-per-task={options.workers}",
        "--requeue",
        f"--output={logs}/{stage}-%a.log",
        "--open-mode=append",
        f"--chdir={Path.cwd()}",
        *([f"--dependency=afterok:{after[0]}", "--kill-on-invalid-dep=yes"] if after else []),
        *shlex.split(options.sbatch),
        f"--wrap={script}",
    ]


def _refuse_living_jobs(work: Work) -> None:
    note = work.path / _JOBS_NAME
    if not note.exists():
        return
    jobs = note.read_text().split()
    result = _run(["squeue", "--noheader", "--format=%F", f"--jobs={','.join(jobs)}"])
    if result.returncode and "Invalid job id" not in result.stderr:  # which it says of jobs long gone
        raise DataError(f"cannot tell whether earlier jobs still run: {result.stderr.strip()}")
    if alive := [job for job in jobs if job in result.stdout.split()]:
        raise DataError(
            f"jobs {', '.join(alive)} of an earlier submission still wait or run: let them, or end them with "
            f"scancel {' '.join(alive)}"
        )


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
