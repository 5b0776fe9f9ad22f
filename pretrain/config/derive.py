"""Numbers that follow from a configuration; pure functions, never stored."""

from __future__ import annotations

import math

from pretrain.config.model import ModelSection
from pretrain.config.schema import JobConfig

VOCAB_MULTIPLE = 128
"""Embedding rows are padded to this multiple whatever the TP size, so that weights fit every layout."""


def data_parallel_size(config: JobConfig, world_size: int) -> int:
    """Ranks that hold the same tensor-parallel shard: world_size / tensor_model_parallel_size."""
    return world_size // config.parallel.tensor_model_parallel_size


def gradient_accumulation_steps(config: JobConfig, world_size: int) -> int:
    """Micro-batches that one data-parallel rank runs in one optimizer step."""
    per_pass = config.batch.micro_batch_size * data_parallel_size(config, world_size)
    return config.batch.global_batch_size // per_pass


def padded_vocab_size(model: ModelSection) -> int:
    """Rows of the embedding: vocab_size rounded up to a multiple of 128."""
    return math.ceil(model.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def tokens_per_step(config: JobConfig) -> int:
    """Tokens that one optimizer step reads, over all ranks."""
    return config.batch.global_batch_size * config.batch.seq_length


def parameter_count(model: ModelSection) -> int:
    """Parameters of the whole model with its padded embedding, heads included.

    Per layer: attention 4h^2 + 4h, MLP 2hf + h + f, two norms 4h. GPT adds the final norm; BERT adds token
    types, the embedding norm (post-norm) or final norm (pre-norm), the MLM transform, its bias, pooler and
    NSP head.
    """
    h, f, vocab = model.hidden_size, model.ffn_hidden_size, padded_vocab_size(model)
    layer = 4 * h * h + 4 * h + 2 * h * f + h + f + 4 * h
    total = model.num_layers * layer + vocab * h + model.max_position_embeddings * h + 2 * h
    if getattr(model, "kind", "gpt") == "bert":
        total += 2 * h + (h * h + h + 2 * h) + vocab + (h * h + h) + (2 * h + 2)
    return total


def train_flops_per_token(model: ModelSection, seq_length: int) -> float:
    """Model FLOPs, forward and backward, of the layers for one token; no recompute counted.

    6 x (weights in matrix products) + 12 x layers x hidden x seq_length for the attention scores (Narayanan
    et al., 2021, appendix). The vocabulary projection is apart, in `head_flops_per_token`: BERT runs it on
    masked positions only.
    """
    h, f = model.hidden_size, model.ffn_hidden_size
    matrix = model.num_layers * (4 * h * h + 2 * h * f)
    return 6.0 * matrix + 12.0 * model.num_layers * h * seq_length


def head_flops_per_token(model: ModelSection) -> float:
    """FLOPs, forward and backward, of the vocabulary projection for one *predicted* token."""
    return 6.0 * model.hidden_size * padded_vocab_size(model)
