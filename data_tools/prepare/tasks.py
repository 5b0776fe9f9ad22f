"""Run any task of a corpus: what a worker process, a job array or a Ray worker is told to do.

    python -m data_tools.prepare.tasks WORK_DIRECTORY STAGE --task-index 3 --task-count 16

runs the tasks 3, 19, 35, ... of a stage that are not finished yet.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError
from data_tools.prepare.finish_task import RECORD_NAME, publish
from data_tools.prepare.lock import hold_directory
from data_tools.prepare.options import RunOptions
from data_tools.prepare.plan import CLUSTER, DEDUP, FINISH, GATHER, PACK, READ
from data_tools.prepare.work import Work
from data_tools.workers import WorkerPool


@dataclass(frozen=True, slots=True)
class Task:
    """One task: everything else stands in the plan of the work directory."""

    work: Work
    stage: str
    number: int
    max_bad_fraction: float


def run_task(task: Task) -> int:
    """Run a task; returns its number. Finished outputs of others are only read.

    Stage "read" is the function `read` of module `read_task`, and so on; each is imported when it is needed.

    Raises:
        DataError: what the user can mend, a full disk included.
    """
    run = getattr(importlib.import_module(f"data_tools.prepare.{task.stage}_task"), task.stage)
    try:
        if task.stage == GATHER:
            run(task.work, task.max_bad_fraction)
        elif task.stage == READ:
            run(task.work, task.number, task.max_bad_fraction)
        elif task.stage in (CLUSTER, FINISH):
            run(task.work)
        else:
            run(task.work, task.number)
    except OSError as error:
        raise DataError(_explain(error, task)) from error
    return task.number


def require_finished(work: Work, stage: str) -> None:
    """Raise a DataError unless every task of the stages before `stage` is finished."""
    for earlier, count in work.plan().stages():
        if earlier == stage:
            return
        if missing := work.missing(earlier, count):
            raise DataError(
                f"{work.path}: stage {stage} needs {earlier}, of which {len(missing)} of {count} tasks are "
                f"not finished (the first is {missing[0]})"
            )


def _explain(error: OSError, task: Task) -> str:
    where = error.filename or task.work.path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left while writing below {task.work.path}: free some and run the same command again; "
            "finished tasks are kept"
        )
    return f"{where}: {error.strerror or error} (stage {task.stage}, task {task.number})"


def main(argv: Sequence[str]) -> int:
    """Run a share of a stage's tasks; the exit code is 2 after an error of the user."""
    parser = argparse.ArgumentParser(prog="python -m data_tools.prepare.tasks", description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("stage", choices=(READ, GATHER, DEDUP, CLUSTER, PACK, FINISH))
    parser.add_argument("--task-index", type=int, default=0)
    parser.add_argument("--task-count", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-bad-fraction", type=float, default=0.01)
    arguments = parser.parse_args(argv)
    try:
        RunOptions(arguments.task_index, arguments.task_count, arguments.max_bad_fraction)
        _run_share(Work(arguments.work), arguments)
    except DataError as error:
        print(f"headwater: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run_share(work: Work, arguments: argparse.Namespace) -> None:
    if not work.corpus.exists() and (work.out / RECORD_NAME).exists():  # a job that runs again, too late
        print(f"{work.out} is complete")
        work.remove_published()
        return
    stage = arguments.stage
    with hold_directory(work.path, shared=True) as hold:
        require_finished(work, stage)
        hold.share()
        count = dict(work.plan().stages())[stage]
        tasks = [
            Task(work, stage, number, arguments.max_bad_fraction)
            for number in work.missing(stage, count)
            if number % arguments.task_count == arguments.task_index
        ]
        with WorkerPool(arguments.workers) as pool:
            for number in pool.map(run_task, tasks):
                print(f"{stage}: task {number} of {count} is finished", flush=True)
        if stage == FINISH:
            try:
                publish(work, work.out)
            except OSError as error:
                raise DataError(_explain(error, Task(work, stage, 0, 0.0))) from error
    if stage == FINISH:
        work.remove_published()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
