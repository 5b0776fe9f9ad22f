"""What a rank hands to collectives in an optimizer step, counted where torch dispatches them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode


class CollectiveCounter(TorchDispatchMode):
    """Adds up the bytes of tensors in c10d collectives.

    Attributes:
        payload: (operation, group size) -> bytes of the whole tensors: for a gather or scatter, all parts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.payload: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            unboxed = [self._group(value) for value in args]
            group = next(value for value in unboxed if value is not None)
            name = func.__name__.split(".")[0].strip("_").removesuffix("_base")
            payload = max(_bytes(value) for value in args)
            if name == "send":  # a part goes to each of the others: the weights' all-gather over gloo
                name, payload = "allgather", payload * group.size() // (group.size() - 1)
            self.payload[name, group.size()] += payload
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _group(value: Any) -> dist.ProcessGroup | None:
        try:
            return dist.ProcessGroup.unbox(value)
        except (RuntimeError, TypeError):
            return None


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def traffic_of_a_step(config: Any) -> Counter[tuple[str, int]]:
    """Bytes by operation and group size of a rank's second optimizer step; the first one has set-up in it."""
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.rng import seed_step
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from pretrain.parity.batches import micro_batches
    from pretrain.parity.probe import fresh_model
    from pretrain.step import train_step

    topology = initialize_topology(config.parallel.tensor_model_parallel_size)
    model = fresh_model(config, topology)
    engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    for step in range(2):
        batches = micro_batches(config, step, topology.data_parallel_rank, topology.data_parallel_size)
        for batch in batches:  # the estimate is that of full sequences; a BERT sends nothing of padding
            if "padding_mask" in batch:
                batch["padding_mask"] = np.ones_like(batch["padding_mask"])
        seed_step(config.seed, step, topology)
        with CollectiveCounter() as counter:
            train_step(engine, batches, lr=1e-3)
    engine.close()
    return counter.payload
