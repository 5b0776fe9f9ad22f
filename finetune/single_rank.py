"""Our models in one process, for conversion and generation, from checkpoints of any layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pretrain.config import ConfigError
from pretrain.config.environment import world_size_from_environment
from pretrain.parallel.topology import (
    Topology,
    initialize_topology,
    leave_process_group,
)

LAYOUT: dict[str, Any] = {"precision": "fp32", "tensor_model_parallel_size": 1, "recompute": "none"}
"""How a model is built here: whole, in fp32."""


@contextmanager
def single_rank() -> Iterator[Topology]:
    """The process groups of one rank, for as long as the block runs.

    Raises:
        ConfigError: If a launcher started several ranks.
    """
    ranks = world_size_from_environment()
    if ranks > 1:
        raise ConfigError(
            f"this command runs as one process, but a launcher started {ranks}; run it without launcher"
        )
    topology = initialize_topology(1)
    try:
        yield topology
    finally:
        leave_process_group()
