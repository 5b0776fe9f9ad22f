"""Estimates of what a run needs, by published formulas; no torch, no device.

ZeRO: Rajbhandari et al., 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
sections 3.1 and 5. Activations: Korthikanti et al., 2022, "Reducing Activation Recomputation in Large
Transformer Models", section 4. Buffers of the communication library, fragmentation and the libraries
themselves come on top: the estimate says whether a run can fit, not that it will.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config import RunConfig
from pretrain.config.derive import (
    LOGITS_AT_A_TIME,
    data_parallel_size,
    is_gated,
    key_value_size,
    optimizer_bytes,
    padded_vocab_size,
    parameter_count,
    predicted_share,
    weight_bytes,
)
from pretrain.config.layouts import is_offloaded
from pretrain.config.model import ModelConfig

CHECKPOINT_BYTES_PER_PARAMETER = 12
"""The fp32 weight and both Adam moments."""
_BLOCK_LOGITS = 2**25
"""Logits that are in fp32 at a time on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes that one rank needs."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def rank_memory(config: RunConfig, world_size: int) -> RankMemory:
    """Peak memory of one rank on its device; each tensor rank holds 1/TP of the weights.

    What is offloaded lies on the host; hpZ holds a second copy of the weights in each group of ranks.
    """
    parameters = parameter_count(config.model) // config.parallel.tensor_model_parallel_size
    weights, gradients, optimizer = model_state_bytes(
        parameters, data_parallel_size(config, world_size), config.parallel.zero_stage, config.precision
    )
    zero = config.deepspeed.get("zero_optimization") or {}
    optimizer *= not is_offloaded(zero, "offload_optimizer")
    weights *= not is_offloaded(zero, "offload_param")
    if (group := zero.get("zero_hpz_partition_size", 1)) > 1:
        weights += weight_bytes(config.precision) * parameters // group
    return RankMemory(
        weights=weights, gradients=gradients, optimizer=optimizer, activations=activation_bytes(config)
    )


def model_state_bytes(
    parameters: int, data_ranks: int, zero_stage: int, precision: str, gradient_bytes: int = 4
) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer states on one rank.

    Stage 1 spreads the optimizer's states over the data ranks, 2 also the gradients, 3 also the weights.

    Args:
        parameters: Parameters that one tensor rank holds.
        data_ranks: Data-parallel size.
        zero_stage: 0 to 3.
        precision: fp32, bf16 or fp16.
        gradient_bytes: Of one gradient element; ours accumulate in fp32 at every precision.
    """
    weight, state = weight_bytes(precision), optimizer_bytes(precision, zero_stage, data_ranks)
    split = [data_ranks if zero_stage >= stage else 1 for stage in (3, 2, 1)]
    weights, gradients, optimizer = (
        size * parameters // parts for size, parts in zip((weight, gradient_bytes, state), split, strict=True)
    )
    return weights, gradients, optimizer


def activation_bytes(config: RunConfig) -> int:
    """Activations of one micro-batch on one rank, and what the vocabulary projection takes on top of them.

    The term of the attention scores is absent because scaled_dot_product_attention does not store them; what
    `pretrain.models.cpu_attention` keeps on CPU in bf16 is not counted. With full recompute each layer keeps
    its input, 2*s*b*h, and one layer at a time is whole.
    """
    model, batch, tensor_ranks = config.model, config.batch, config.parallel.tensor_model_parallel_size
    positions = batch.micro_batch_size * batch.seq_length
    wide = 2 if config.precision == "fp32" else 1  # the formula counts two-byte elements
    # What the split layers leave whole is cut over the sequence by sequence parallelism (equation 4).
    whole = model.hidden_size / (tensor_ranks if config.parallel.sequence_parallel else 1)
    layer = wide * positions * (10 * whole + split_layer_bytes(model) / tensor_ranks)
    if config.training.recompute == "full":
        layers = model.num_layers * wide * 2 * positions * whole + layer
    else:
        layers = model.num_layers * layer
    return int(layers) + projection_bytes(config)


def projection_bytes(config: RunConfig) -> int:
    """Peak of the vocabulary projection with its loss (`pretrain.models.vocabulary`), beside the activations.

    The forward pass has a chunk of logits, a block of it in fp32, and the gradients of hidden states and
    weight; the weight's is summed in fp32 where there are several chunks. In fp32 a chunk's share is added
    as it is made; in 16 bits there is the share, and torch makes an fp32 copy to add it. The backward pass
    multiplies both by a factor in place.
    """
    model, rows = config.model, padded_vocab_size(config.model) / config.parallel.tensor_model_parallel_size
    predicted = config.batch.micro_batch_size * config.batch.seq_length * predicted_share(config)
    logits = min(predicted * rows, LOGITS_AT_A_TIME)
    w = weight_bytes(config.precision)
    hidden, weight = w * predicted * model.hidden_size, rows * model.hidden_size
    several = logits < predicted * rows
    held = 4 * weight if several else 0
    copied = 4 * weight if several and w < 4 else 0
    share = 0 if several and w == 4 else w * weight
    block = 4 * min(logits, _BLOCK_LOGITS)
    forward = w * logits + hidden + held + max(block, share + copied)
    backward = hidden + max(w * weight, held + copied)
    return int(max(forward, backward))


def split_layer_bytes(model: ModelConfig) -> int:
    """Bytes for one token and layer, at two an element, of the activations that tensor parallelism splits.

    Queries, keys, values and the input of the output projection; in the MLP the input of the activation and
    of the second matrix: 24 h for GPT-2's shape. A gated MLP keeps gate, up, silu(gate) and the product;
    `pretrain.models.swiglu` on CPU in bf16 no silu(gate).
    """
    attention = 2 * (2 * model.hidden_size + 2 * key_value_size(model))
    return attention + (8 if is_gated(model) else 4) * model.ffn_hidden_size


def checkpoint_bytes(model: ModelConfig) -> int:
    """Size of one checkpoint on disk, over all ranks; the layout does not change it."""
    return CHECKPOINT_BYTES_PER_PARAMETER * parameter_count(model)


def readable_bytes(count: float) -> str:
    """A size with a unit, 1024 to the next."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def readable_count(count: float) -> str:
    """A number with a suffix: 124.4 M."""
    for suffix in ("", " K", " M", " B"):
        if count < 1000:
            return f"{count:.4g}{suffix}"
        count /= 1000
    return f"{count:.4g} T"
