"""Real ranks for tests: processes that are started once and run many functions."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


class RankPool:
    """`world_size` processes joined in one gloo group; `run` calls a function on all of them.

    Ranks are forks of one process that has done the imports (10 s) once. Start one pool per test module and
    run every layout in it.
    """

    def __init__(self, world_size: int) -> None:
        context = _imported_context()
        self._store, port = _store_server()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, world_size, port), daemon=True)
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
        """Call "module:function" with the same arguments on every rank; returns the results in rank order."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(timeout_seconds):
                raise TimeoutError(f"rank {rank} did not answer {function} within {timeout_seconds} s")
            ok, value = pipe.recv()
            if not ok:
                raise AssertionError(f"rank {rank} failed in {function}:\n{value}")
            results.append(value)
        return results


def _imported_context() -> multiprocessing.context.ForkServerContext:
    """Start processes as forks of a server that imported everything and has started no thread."""
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")  # the server reads them when it imports
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.imports"])
    return context


def _serve(pipe: Connection, rank: int, world_size: int, port: int) -> None:
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

    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", store=dist.PrefixStore(f"call-{call}", store), rank=rank, world_size=world_size
    )
    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(**arguments)
    dist.barrier()
    leave_process_group()
    return result


def _store_server() -> tuple[Any, int]:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return store, store.port
