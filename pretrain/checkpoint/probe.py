"""The probe of a checkpoint: a micro-batch that was trained on, and its loss with the saved weights.

Fingerprints show that parameters arrived bit for bit; the loss shows that the model computes with them what
it computed before, in whatever layout it is now.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import torch.distributed as dist

from pretrain.checkpoint.manifest import CheckpointError
from pretrain.config.schema import JobConfig, RunConfig
from pretrain.parallel.collectives import broadcast_from_main
from pretrain.parallel.zero import Engine
from pretrain.step import MicroBatch, mean_loss, to_device, to_tensors

PROBE = "probe.safetensors"
PENDING_SECONDS = 600.0
"""How long a complete checkpoint waits for its probe, while a step hangs or waits for data; then it stays
without one."""
BOUNDS = {"fp32": 1e-4, "bf16": 2e-3, "fp16": 2e-3}
"""Largest relative difference of the loss, by precision. Sums in another order give 1e-7 in fp32 and 2e-5 to
5e-4 in bf16 (docs/layouts.md); a parameter in the wrong place gives far more."""


@torch.no_grad()
def probe_loss(engine: Engine, batch: MicroBatch) -> float:
    """Mean loss over this rank's micro-batch, dropout off; all ranks call it together, between steps."""
    engine.eval_mode()
    try:
        parts = engine.forward(to_device(batch, engine.topology.device))
        return mean_loss(engine, to_tensors(batch), parts)
    finally:
        engine.train_mode()


class Probe:
    """The probe of one checkpoint; it may come when the checkpoint is already being written.

    The next step's forward pass has the saved weights and can bring it (`offer`); before ranks wait for their
    writers it is computed (`settle`). The thread that trains does both, on all ranks at the same place, so
    that all have one or none. The main rank's thread that publishes waits (`wait`).
    """

    def __init__(self, batch: MicroBatch | None) -> None:
        """Begin without a loss.

        Args:
            batch: This rank's micro-batch for `settle`; None for none.
        """
        self._batch, self._loss = batch, math.nan
        self._there = threading.Event()

    def offer(self, batch: MicroBatch, loss: float) -> None:
        """Take a micro-batch and its loss with the saved weights, unless there is a probe already."""
        if not self._there.is_set():
            self._batch, self._loss = batch, loss
            self._there.set()

    def settle(self, engine: Engine) -> None:
        """Compute what was not offered; called by all ranks together, the weights are the saved ones."""
        if self._batch is not None and not self._there.is_set():
            self.offer(self._batch, probe_loss(engine, self._batch))
        self.close()

    def close(self) -> None:
        """Do without, if nothing was offered."""
        self._there.set()

    @property
    def is_there(self) -> bool:
        """Whether nothing is to be waited for."""
        return self._there.is_set()

    def wait(self) -> tuple[float, bytes] | None:
        """The loss and what PROBE holds, when they are there; None if they do not come or are not finite."""
        if not self._there.wait(PENDING_SECONDS) or self._batch is None or not math.isfinite(self._loss):
            return None
        return self._loss, as_file(self._batch)


def trains_as_it_evaluates(config: JobConfig) -> bool:
    """Whether a forward pass of the training computes what one of an evaluation does.

    Finetuning has losses and dropout of its own.
    """
    if not isinstance(config, RunConfig):
        return False
    return config.model.hidden_dropout == config.model.attention_dropout == 0.0


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
