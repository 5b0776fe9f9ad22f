"""Real ranks on this machine: processes that are started once and run many functions."""

from __future__ import annotations

import gc
import importlib
import itertools
import multiprocessing
import os
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from pretrain.parallel.topology import store_server

IMPORTS = ("pretrain.loop", "pretrain.models", "pretrain.parity.probe")


class RankError(AssertionError):
    """A function raised on a rank (the message has its traceback), or the rank is silent or gone."""


class RankPool:
    """`world_size` processes joined in one gloo group; `run` calls a function on all of them.

    Ranks are forks of one process that has done the imports (10 s) once: start a pool once and run every
    layout in it.
    """

    def __init__(self, world_size: int, imports: Sequence[str] = IMPORTS, log: str | None = None) -> None:
        """Start the ranks.

        Args:
            world_size: How many.
            imports: Modules to import before the fork; those of the first pool of a process count.
            log: File for what the ranks print; None leaves it on the terminal.
        """
        context = _imported_context(imports)
        self._store, port = store_server()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, (world_size, port, log)), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> RankPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def run(self, function: str, timeout_seconds: float = 300.0, **arguments: Any) -> list[Any]:
        """Call "module:function" with the same arguments on every rank; returns the results in rank order.

        Raises:
            RankError: A rank failed, died, or did not answer in time; the pool is of no use any more.
        """
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(timeout_seconds):
                raise RankError(f"rank {rank} did not answer {function} within {timeout_seconds:.0f} s")
            try:
                ok, value = pipe.recv()
            except (EOFError, ConnectionError):
                raise RankError(f"rank {rank} died in {function}; too little memory?") from None
            if not ok:
                raise RankError(f"rank {rank} failed in {function}:\n{value}")
            results.append(value)
        return results


def _imported_context(imports: Sequence[str]) -> multiprocessing.context.ForkServerContext:
    """Start processes as forks of a server that imported everything and has started no thread."""
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")  # the server reads them when it imports
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(imports))
    return context


def _serve(pipe: Connection, rank: int, place: tuple[int, int, str | None]) -> None:
    world_size, port, log = place
    if log:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1",
    )
    for call in itertools.count():
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, _call(function, arguments, call)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def _call(function: str, arguments: dict[str, Any], call: int) -> Any:
    """Run one function in fresh process groups: old gloo groups would keep waking threads."""
    import torch.distributed as dist

    from pretrain.parallel.topology import leave_process_group

    store = dist.TCPStore(  # type: ignore[attr-defined]  # public, but missing from __all__
        "127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False
    )
    prefixed = dist.PrefixStore(f"call-{call}", store)  # type: ignore[attr-defined]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=world_size)
    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(**arguments)
    dist.barrier()
    leave_process_group()
    gc.collect()  # engines lie in reference cycles, and keep their groups and the threads of these
    return result
