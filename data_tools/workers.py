"""Run a function over tasks in worker processes; results come in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data_tools.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_order(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Yield `function(task)` for each task.

    One worker means this process. More are spawned, so that no state is inherited; `function` and the
    tasks must pickle. When the caller stops early, tasks that have not begun are dropped.

    Raises:
        DataError: a worker died without an exception, as the kernel's out-of-memory killer makes it.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_ignore_interrupt)
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool as error:
        raise DataError("a worker process was killed, probably out of memory: use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent, so that it ends the work once and prints one message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
