"""The probe of a checkpoint: a micro-batch that was trained on, and its loss at the save.

Fingerprints show that parameters arrived bit for bit; the loss shows that the model computes with them what
it computed before, in whatever layout it is now.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.numpy
import torch
import torch.distributed as dist

from pretrain.checkpoint.manifest import CheckpointError
from pretrain.models import PretrainingModel
from pretrain.parallel.collectives import broadcast_from_main
from pretrain.parallel.zero import Engine
from pretrain.step import MicroBatch, to_device

PROBE = "probe.safetensors"
BOUNDS = {"fp32": 1e-4, "bf16": 2e-3, "fp16": 2e-3}
"""Largest relative difference of the loss, by precision. Sums in another order give 1e-7 in fp32 and 2e-5 to
5e-4 in bf16 (docs/layouts.md); a parameter in the wrong place gives far more."""


@torch.no_grad()
def probe_loss(engine: Engine, batch: MicroBatch) -> float:
    """Mean loss over this rank's micro-batch, dropout off; all ranks call it together, between steps."""
    objective = cast(PretrainingModel, engine.model)
    tensors = to_device(batch, engine.topology.device)
    engine.eval_mode()
    try:
        parts = engine.forward(tensors)
        counts, weights = objective.target_counts(tensors), objective.loss_weights()
    finally:
        engine.train_mode()
    return sum(weights[name] * float(parts[name]) / max(1.0, float(counts[name])) for name in weights)


def as_file(batch: MicroBatch) -> bytes:
    """What PROBE holds."""
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in batch.items()})


def check_probe(engine: Engine, directory: Path, manifest: dict[str, Any]) -> tuple[str, MicroBatch | None]:
    """Compute the loss of a checkpoint's probe again; called by all ranks together, after loading.

    Returns:
        What there is to tell, and the micro-batch.

    Raises:
        CheckpointError: on every rank, if any computes another loss than was saved.
    """
    saved = manifest.get("probe_loss")
    if saved is None:
        return "no probe loss was saved", None
    path, topology = directory / PROBE, engine.topology
    batch = broadcast_from_main(safetensors.numpy.load_file(path) if topology.is_main else None)
    size, length = topology.tensor_model_parallel_size, batch["tokens"].shape[1]
    if engine.config.parallel.sequence_parallel and length % size:
        return f"probe loss not compared: its {length} tokens cannot be split over TP {size}", batch
    losses: list[Any] = [None] * topology.world_size
    dist.all_gather_object(losses, probe_loss(engine, batch))
    bound = max(BOUNDS[manifest["topology"]["precision"]], BOUNDS[engine.config.precision])
    rank = max(range(len(losses)), key=lambda rank: _apart(losses[rank], saved))
    if _apart(losses[rank], saved) > bound:
        raise CheckpointError(
            f"{directory}: the probe loss was {saved:.6f} at the save and is {losses[rank]:.6f} now, on rank "
            f"{rank}, further apart than {bound:.0e} of it; the run cannot go on from it in this layout"
        )
    return f"probe loss {losses[0]:.6f}, saved {saved:.6f}", batch


def _apart(loss: float, saved: float) -> float:
    return abs(loss - saved) / max(abs(saved), 1e-3) if math.isfinite(loss) else math.inf
