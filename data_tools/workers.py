"""Run a function over tasks in worker processes; results come in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import TypeVar

from data_tools.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerPool:
    """Processes that live for many calls of `map`. Use as a context manager.

    One worker means this process. More are spawned at the first call, so that no state is inherited;
    functions and tasks must pickle.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise DataError(f"--workers must be positive, not {workers}")
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._workers_begun: set[BaseProcess] = set()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if exc_type is not None and not issubclass(exc_type, Exception):  # Ctrl-C does not wait for tasks
            for worker in self._workers_begun:
                worker.terminate()
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield `function(task)` for each task. When one fails, those that have not begun are dropped.

        Raises:
            DataError: a worker died without an exception, as the kernel's out-of-memory killer makes it.
        """
        if self._workers == 1 or (len(tasks) == 1 and self._pool is None):
            yield from map(function, tasks)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, initializer=_begin)
        others = set(multiprocessing.active_children()) - self._workers_begun
        try:
            results = self._pool.map(function, tasks)
            self._workers_begun = set(multiprocessing.active_children()) - others
            yield from results
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, probably out of memory: run again with fewer --workers"
            ) from error


def _begin() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
