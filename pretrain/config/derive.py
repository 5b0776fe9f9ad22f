"""Numbers that follow from a configuration; pure functions, never stored."""

from __future__ import annotations

import math

from pretrain.config.model import BertModelConfig, GPTModelConfig, ModelConfig, ModelSection
from pretrain.config.ramp import batch_stages, samples_before
from pretrain.config.schema import JobConfig, RunConfig

VOCAB_MULTIPLE = 128
"""Embedding rows are padded to this multiple whatever the TP size, so that weights fit every layout."""
LOGITS_AT_A_TIME = 2**26
"""Logits of a rank that exist at a time (`pretrain.models.vocabulary`): 128 MB in bf16."""


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
    """Tokens that one optimizer step of global_batch_size reads, over all ranks."""
    return config.batch.global_batch_size * config.batch.seq_length


def train_tokens(config: JobConfig) -> int:
    """Tokens that a run reads from its first step to its last, those of a batch ramp included."""
    return samples_before(batch_stages(config.batch), config.training.train_steps) * config.batch.seq_length


def weight_bytes(precision: str) -> int:
    """Bytes of a weight, and of an activation, in the compute type."""
    return 4 if precision == "fp32" else 2


def optimizer_bytes(precision: str, zero_stage: int, data_ranks: int) -> int:
    """Bytes of optimizer state for a parameter: two fp32 moments, and mostly an fp32 copy of the weight.

    DeepSpeed's partitioned optimizers update the copy; in fp32 a lone data rank needs none
    (`pretrain.config.deepspeed.running_stage`).
    """
    one_copy = precision == "fp32" and (zero_stage == 0 or (zero_stage < 3 and data_ranks == 1))
    return 8 if one_copy else 12


def query_groups(model: ModelSection) -> int:
    """Key and value heads: num_query_groups where it is set, else one for each attention head."""
    return getattr(model, "num_query_groups", None) or model.num_attention_heads


def key_value_size(model: ModelSection) -> int:
    """Width of all keys, or of all values, of a token: hidden_size unless queries share them."""
    return model.hidden_size * query_groups(model) // model.num_attention_heads


def layer_matrix_parameters(model: ModelSection) -> int:
    """Weights in the matrix products of a layer: 2h^2 + 2hk in attention, 2hf or (gated) 3hf in the MLP."""
    h, f = model.hidden_size, model.ffn_hidden_size
    return 2 * h * h + 2 * h * key_value_size(model) + (3 if is_gated(model) else 2) * h * f


def is_gated(model: ModelSection) -> bool:
    """Whether the MLP has a third matrix that gates the others."""
    return isinstance(model, GPTModelConfig) and model.swiglu


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the whole model with its padded embedding, heads included."""
    if isinstance(model, BertModelConfig):
        return _bert_parameters(model)
    h, vocab = model.hidden_size, padded_vocab_size(model)
    norm = 2 * h if model.normalization == "LayerNorm" else h
    layer = layer_matrix_parameters(model) + 2 * norm
    if model.add_bias_linear:
        layer += _layer_biases(model)
    total = model.num_layers * layer + norm + vocab * h
    if model.position_embedding_type == "learned_absolute":
        total += model.max_position_embeddings * h
    if model.untie_embeddings_and_output_weights:
        total += vocab * h
    return total


def padding_parameters(model: ModelConfig) -> int:
    """How many of `parameter_count` are rows that only pad the vocabulary."""
    each = model.hidden_size
    if isinstance(model, BertModelConfig):
        each += 1  # the bias of the masked-LM head
    elif model.untie_embeddings_and_output_weights:
        each *= 2
    return (padded_vocab_size(model) - model.vocab_size) * each


def _bert_parameters(model: BertModelConfig) -> int:
    """Embeddings of words, positions and two segments; one norm beside those of the layers; the heads."""
    h, vocab = model.hidden_size, padded_vocab_size(model)
    layer = layer_matrix_parameters(model) + _layer_biases(model) + 4 * h
    embeddings = (vocab + model.max_position_embeddings + 2) * h
    mlm = h * h + h + 2 * h + vocab
    binary = (h * h + h) + (2 * h + 2) if model.add_binary_head else 0
    return model.num_layers * layer + embeddings + 2 * h + mlm + binary


def _layer_biases(model: ModelSection) -> int:
    f = model.ffn_hidden_size * (2 if is_gated(model) else 1)
    return 3 * model.hidden_size + 2 * key_value_size(model) + f


def train_flops_per_token(model: ModelSection, seq_length: int) -> float:
    """Model FLOPs, forward and backward, of the layers for one token; no recompute counted.

    6 x (weights in matrix products) + 12 x layers x hidden x seq_length for the attention scores (Narayanan
    et al., 2021, appendix). The vocabulary projection is apart, in `head_flops_per_token`: BERT runs it on
    masked positions only.
    """
    matrix = model.num_layers * layer_matrix_parameters(model)
    return 6.0 * matrix + 12.0 * model.num_layers * model.hidden_size * seq_length


def head_flops_per_token(model: ModelSection) -> float:
    """FLOPs, forward and backward, of the vocabulary projection for one *predicted* token."""
    return 6.0 * model.hidden_size * padded_vocab_size(model)


def flops_per_step(config: RunConfig) -> float:
    """Model FLOPs of one optimizer step: forward and backward, recompute not counted."""
    body = train_flops_per_token(config.model, config.batch.seq_length)
    return tokens_per_step(config) * (body + predicted_share(config) * head_flops_per_token(config.model))


def predicted_share(config: RunConfig) -> float:
    """Tokens that the model predicts, of all: every one of a GPT, the masked ones of a BERT."""
    return 1.0 if config.model.kind == "gpt" else config.data.masking.mask_probability
