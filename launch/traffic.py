"""What a rank hands to collectives in one optimizer step, by layout; no torch.

Tensor parallelism: Shoeybi et al., 2019, section 3, and with sequence parallelism Korthikanti et al., 2022,
section 4.2.2. ZeRO: what deepspeed 0.19.8 does, which is not in every point what Rajbhandari et al., 2020,
section 7, count: at stages 1 and 2 it reduces gradients by all-reduce, twice the bytes of a reduce-scatter,
and at stage 2 after each micro-batch. tests/distributed/test_traffic.py compares with what ranks do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrain.config import RunConfig
from pretrain.config.derive import (
    data_parallel_size,
    gradient_accumulation_steps,
    parameter_count,
    predicted_share,
    weight_bytes,
)
from pretrain.config.model import GPTModelConfig, ModelConfig

Operation = Literal["all-reduce", "all-gather", "reduce-scatter"]
Dimension = Literal["tensor", "data"]

GRADIENTS = "gradients"
"""A purpose."""
_LOW_PRECISION = {"bf16", "bfloat16", "fp16", "half"}
"""DeepSpeed's names of communication_data_type that have two bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The collectives of one kind and purpose in one optimizer step, as each rank sees them."""

    purpose: str
    operation: Operation
    dimension: Dimension
    """Whether the tensor-parallel or the data-parallel ranks take part."""
    ranks: int
    payload_bytes: float
    """Bytes of the whole tensors: for a gather the result, for a scatter the input."""

    @property
    def sent_bytes(self) -> float:
        """What a rank sends on a ring (Patarasuk & Yuan, 2009); nccl-tests call their rate `busbw`."""
        passes = 2 if self.operation == "all-reduce" else 1
        return passes * (self.ranks - 1) / self.ranks * self.payload_bytes


def step_traffic(config: RunConfig, world_size: int) -> list[Traffic]:
    """Collectives of one optimizer step that grow with the model; single numbers and norms are left out."""
    micro_batches = gradient_accumulation_steps(config, world_size)
    found = []
    if config.parallel.tensor_model_parallel_size > 1:
        found += _activations(config, micro_batches)
    data_ranks = data_parallel_size(config, world_size)
    if data_ranks > 1:
        found += _model_states(config, data_ranks, micro_batches)
    return found


def _activations(config: RunConfig, micro_batches: int) -> list[Traffic]:
    """Between the tensor-parallel ranks: activations [seq_length, micro_batch_size, hidden_size].

    A layer has two regions, each entered and left once forward and once backward. Without sequence
    parallelism two of these four are all-reduces and two are nothing; with it they are gathers and scatters,
    and the backward pass gathers the inputs of both regions again. Full recompute goes forward twice. BERT's
    head works on whole sequences, and each rank takes its slice of the gradient.
    """
    model, batch = config.model, config.batch
    layers = model.num_layers
    whole = batch.seq_length * batch.micro_batch_size * model.hidden_size * weight_bytes(config.precision)
    again = 2 * layers if config.training.recompute == "full" else 0
    predicted = predicted_share(config)
    if not config.parallel.sequence_parallel:
        counts: list[tuple[str, Operation, float]] = [
            ("activations of layers", "all-reduce", 4 * layers + again),
            ("activations of the embedding", "all-reduce", 1),
            ("activations of the head", "all-reduce", predicted),
        ]
    else:
        scattered = isinstance(model, GPTModelConfig) and model.position_embedding_type == "rope"
        counts = [
            ("activations of layers", "all-gather", 6 * layers + again),
            ("activations of layers", "reduce-scatter", 4 * layers + again),
            ("activations of the embedding", "reduce-scatter" if scattered else "all-reduce", 1),
            ("activations of the embedding", "all-gather", 1),
            ("activations of the head", "all-gather", 1),
            ("activations of the head", "reduce-scatter" if model.kind == "gpt" else "all-reduce", predicted),
        ]
    return [
        Traffic(
            purpose=purpose,
            operation=operation,
            dimension="tensor",
            ranks=config.parallel.tensor_model_parallel_size,
            payload_bytes=micro_batches * count * whole,
        )
        for purpose, operation, count in counts
    ]


def _model_states(config: RunConfig, data_ranks: int, micro_batches: int) -> list[Traffic]:
    """Between the data-parallel ranks: gradients and weights of this tensor rank's part of the model.

    Stage 3 gathers weights for the forward and the backward pass, those of layers again for a recompute.
    """
    stage = config.parallel.zero_stage
    parameters = parameter_count(config.model) / config.parallel.tensor_model_parallel_size
    gradients = parameters * gradient_bytes(config)
    weights = parameters * weight_bytes(config.precision)
    if stage < 3:
        reductions = micro_batches if stage == 2 else 1
        lines: list[tuple[str, Operation, float]] = [(GRADIENTS, "all-reduce", reductions * gradients)]
        if stage:
            lines.append(("weights", "all-gather", weights))
    else:
        passes = 2 + (_layer_share(config.model) if config.training.recompute == "full" else 0)
        lines = [
            ("weights", "all-gather", micro_batches * passes * weights),
            (GRADIENTS, "reduce-scatter", micro_batches * gradients),
        ]
    return [
        Traffic(purpose=purpose, operation=operation, dimension="data", ranks=data_ranks, payload_bytes=size)
        for purpose, operation, size in lines
    ]


def _layer_share(model: ModelConfig) -> float:
    """The part of the parameters that is in layers."""
    return 1.0 - parameter_count(model.model_copy(update={"num_layers": 0})) / parameter_count(model)


def gradient_bytes(config: RunConfig) -> int:
    """Of an element of the gradients that data-parallel ranks send."""
    return 2 if config.deepspeed.get("communication_data_type") in _LOW_PRECISION else 4
