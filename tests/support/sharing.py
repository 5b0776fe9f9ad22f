"""What ranks run in the tests of shared batches."""

from __future__ import annotations

import os
import time
from typing import Any

import xxhash

from pretrain.config import RunConfig
from pretrain.data import open_stream
from pretrain.data.sharing import SharedStream, share_stream
from pretrain.parallel.batch_broadcast import batch_channel
from pretrain.parallel.topology import initialize_topology


def digests(config: dict[str, Any], tensor_parallel: int, steps: int) -> dict[str, Any]:
    """Hashes of the batches that a rank gets, its state, and what it failed with."""
    run = RunConfig.model_validate(config)
    topology = initialize_topology(tensor_parallel)
    channel = batch_channel(topology)
    place = topology.data_parallel_rank, topology.data_parallel_size
    found: list[str] = []
    stream = None
    try:
        stream = share_stream(lambda: open_stream(run, "train", *place), channel)
        for _ in range(steps):
            found.append(_digest(next(stream)))
            state = stream.state_dict()
        stream.load_state_dict(state)
        found.append(_digest(next(stream)))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "digests": found}
    finally:
        if stream is not None:
            stream.close()
    return {
        "digests": found,
        "state": state,
        "reads": not isinstance(stream, SharedStream) or channel.is_reader,
    }


def leave_without_a_word(config: dict[str, Any], rank: int, port: int, results: Any) -> None:
    """Two ranks; the one that reads is killed, the other says what it notices."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    channel = batch_channel(initialize_topology(2))
    stream = share_stream(lambda: open_stream(RunConfig.model_validate(config)), channel)
    next(stream)
    if rank == 0:
        os._exit(1)
    started = time.monotonic()
    try:
        for _ in range(3):
            next(stream)
        results.put("nothing")
    except RuntimeError:
        results.put(time.monotonic() - started)


def _digest(step: list[dict[str, Any]]) -> str:
    digest = xxhash.xxh3_128()
    for batch in step:
        for name in sorted(batch):
            digest.update(f"{name} {batch[name].shape} {batch[name].dtype}".encode())
            digest.update(batch[name].tobytes())
    return digest.hexdigest()
