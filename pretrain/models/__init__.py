"""The models: megatron-core's parts behind one batch interface."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from pretrain.config.schema import RunConfig
from pretrain.models.bert import BertForPreTraining
from pretrain.models.gpt import GPT


class PretrainingModel(Protocol):
    """What the training step asks of a model (besides being a torch module)."""

    def loss_weights(self) -> dict[str, float]:
        """Weight of each mean loss in the training loss."""

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Predicted targets in a micro-batch, per loss."""


def build_model(config: RunConfig) -> nn.Module:
    """The model of a run configuration, on the CPU, with this rank's tensor-parallel slices.

    Needs the process groups (`initialize_topology`) and a seeded default generator (`seed_initialization`).
    """
    layout = {
        "precision": config.precision,
        "tensor_model_parallel_size": config.parallel.tensor_model_parallel_size,
        "recompute": config.training.recompute,
        "sequence_parallel": config.parallel.sequence_parallel,
    }
    if config.model.kind == "gpt":
        return GPT(config.model, **layout)
    return BertForPreTraining(config.model, **layout)
