"""Threads that fetch, and waiting for what they or an event loop do: all of it ends soon after `stop`.

Not `ThreadPoolExecutor`: Python waits for its threads before it ends, so a request that stalls would hold up
the end of the process, or an interrupt, for its whole time-out.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pretrain.data.access.errors import AccessError

CLOSED = "the reader was closed"
STOP_SECONDS = 0.1
"""How soon a wait notices that it was stopped."""
END_SECONDS = 0.5
"""How long the end waits for threads that clean up: a command to end, a file to remove."""

Result = TypeVar("Result")
Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class FetchThreads:
    """Runs functions in daemon threads, which begin as they are needed.

    Attributes:
        stop: given to every wait of the functions; set by `end`, and when the process ends.
    """

    def __init__(self, threads: int, name: str) -> None:
        self.stop = threading.Event()
        self._most, self._name = threads, name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.end = weakref.finalize(self, _end, self.stop, self._jobs, self._threads)

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Queue a call; a future that is cancelled before its turn is not run. Not after `end`."""
        future: Future[Result] = Future()
        self._jobs.put((future, function, arguments))
        if len(self._threads) < self._most:
            thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, function, arguments = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001 (whoever waits for the future gets it)
                future.set_exception(error)
        del job, future, function, arguments  # an idle thread must not keep what it fetched


def _end(stop: threading.Event, jobs: SimpleQueue[Job | None], threads: list[threading.Thread]) -> None:
    """Drop what is queued, stop what runs, and give it a moment to clean up."""
    stop.set()
    with contextlib.suppress(Empty):
        while True:
            if job := jobs.get_nowait():
                job[0].cancel()
    for _ in threads:
        jobs.put(None)
    until = time.monotonic() + END_SECONDS
    for thread in threads:
        if thread is not threading.current_thread():  # the garbage collector may call from any thread
            thread.join(max(0.0, until - time.monotonic()))


def wait_for(future: Future[Result], stop: threading.Event, seconds: float | None = None) -> Result:
    """The result of what another thread does; waits for it, but not for longer than until `stop`.

    Args:
        future: what is waited for; cancelled where `seconds` are given and it does not come.
        stop: ends the wait.
        seconds: the longest wait.

    Raises:
        AccessError: the fetch failed, or was stopped.
        TimeoutError: nothing came for so long.
    """
    give_up = None if seconds is None else time.monotonic() + seconds
    try:
        while not stop.is_set() and not wait([future], STOP_SECONDS).done:
            if give_up is not None and time.monotonic() > give_up:
                raise TimeoutError
        if stop.is_set():
            raise AccessError(CLOSED)
        return future.result()
    except CancelledError as error:
        raise AccessError(CLOSED) from error
    finally:
        if give_up is not None:
            future.cancel()


def check_running(stop: threading.Event) -> None:
    """Raises an `AccessError` after `stop`."""
    if stop.is_set():
        raise AccessError(CLOSED)
