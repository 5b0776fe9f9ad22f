"""Random number streams as a pure function of (seed, step, rank): nothing to save, nothing to restore.

Initialisation draws the same full weights on every rank and slices them, so it does not depend on TP. Dropout
draws from two streams: the default one, equal on the tensor-parallel ranks of a data-parallel rank
(replicated activations), and megatron-core's "model-parallel-rng", different on each (split activations).
"""

from __future__ import annotations

import numpy as np
import torch
from megatron.core.tensor_parallel import random as megatron_random

from pretrain.parallel.topology import Topology

_STREAM = "model-parallel-rng"
_REPLICATED, _SPLIT = 0, 1


def seed_initialization(seed: int) -> None:
    """Seed the weights: the same stream on every rank."""
    torch.manual_seed(_mix(seed))


def seed_step(seed: int, step: int, topology: Topology) -> None:
    """Seed dropout for optimizer step `step`: fresh streams per step and data-parallel rank."""
    dp_rank, tp_rank = topology.data_parallel_rank, topology.tensor_model_parallel_rank
    torch.manual_seed(_mix(seed, step, dp_rank, _REPLICATED))
    tracker = megatron_random.get_cuda_rng_tracker()
    tracker.reset()
    tracker.add(_STREAM, _mix(seed, step, dp_rank, _SPLIT, tp_rank))


def _mix(*numbers: int) -> int:
    """A well-spread 63-bit seed from several small numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
