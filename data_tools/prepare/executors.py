"""Who runs the tasks: processes of this machine, or Ray; `slurm` submits jobs instead and does not wait."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.prepare.options import PrepareOptions, RunOptions
from data_tools.prepare.plan import make_plan
from data_tools.prepare.run import Executor, Prepared, run_plan
from data_tools.prepare.tasks import Task, run_task
from data_tools.tokenizer import load_tokenizer
from data_tools.workers import WorkerPool

_RAY_TASKS_AHEAD = 10_000  # a driver with many more waiting tasks is slow
_RAY_RETRIES = 3
_RAY_STORE_BYTES = 100 << 20  # results are numbers: leave the memory to the tasks


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Runs tasks in processes of this machine."""

    pool: WorkerPool

    def map(self, tasks: Sequence[Task]) -> Iterator[int]:
        """Run tasks, in their order."""
        return self.pool.map(run_task, tasks)


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Runs tasks in a Ray cluster whose machines share the file system of the corpus."""

    ray: Any

    def map(self, tasks: Sequence[Task]) -> Iterator[int]:
        """Run tasks; one whose worker or machine dies is run again elsewhere.

        Raises:
            DataError: of a task, or Ray gives up.
        """
        remote = self.ray.remote(max_retries=_RAY_RETRIES)(run_task)
        waiting = list(reversed(tasks))
        running: list[Any] = []
        try:
            while waiting or running:
                while waiting and len(running) < _RAY_TASKS_AHEAD:
                    running.append(remote.remote(waiting.pop()))
                finished, running = self.ray.wait(running)
                yield from self.ray.get(finished)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None  # Ray's own message is the traceback of the worker
        except self.ray.exceptions.RayError as error:
            raise DataError(f"Ray gave up: {str(error).strip().splitlines()[0]}") from error


@contextlib.contextmanager
def open_executor(name: str, workers: int) -> Iterator[Executor]:
    """Start an executor; its processes end with the block.

    Args:
        name: "local", or "ray": the cluster at RAY_ADDRESS, or one made of this machine.
        workers: processes on this machine.

    Raises:
        DataError: Ray is not installed.
    """
    if name == "local":
        with WorkerPool(workers) as pool:
            yield LocalExecutor(pool)
        return
    try:
        import ray
    except ImportError as error:
        raise DataError("--executor ray needs Ray: pip install 'headwater[ray]'") from error
    address = os.environ.get("RAY_ADDRESS")
    own = {
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": _RAY_STORE_BYTES,
    }
    ray.init(
        address=address or "local",
        log_to_driver=False,
        logging_level=logging.ERROR,
        **({} if address else own),
    )
    try:
        yield RayExecutor(ray)
    finally:
        ray.shutdown()


def prepare(
    inputs: Sequence[str | Path],
    tokenizer_path: Path,
    out: Path,
    options: PrepareOptions,
    workers: int = 1,
    run: RunOptions | None = None,
) -> Prepared:
    """Make the corpus directory `out` with processes of this machine, or find it complete already.

    Raises:
        DataError: see `run_plan` and `make_plan`.
    """
    tokenizer = load_tokenizer(tokenizer_path)
    plan = make_plan([str(path) for path in inputs], options, tokenizer)
    with open_executor("local", workers) as executor:
        return run_plan(plan, tokenizer.path, out, executor, run or RunOptions())
