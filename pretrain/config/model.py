"""The `model` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from pretrain.config.section import PositiveInt, Rate, Section


class ModelSection(Section):
    """What GPT and BERT share."""

    vocab_size: PositiveInt
    """Pieces of the tokenizer; the embedding is padded to `derive.padded_vocab_size`."""
    num_layers: PositiveInt
    hidden_size: PositiveInt
    ffn_hidden_size: PositiveInt
    """Width inside the MLP, usually 4 * hidden_size."""
    num_attention_heads: PositiveInt
    max_position_embeddings: PositiveInt
    """Longest sequence, in tokens, that the learned positions can address."""
    hidden_dropout: Rate = 0.1
    attention_dropout: Rate = 0.1
    init_std: Annotated[float, Field(gt=0.0)] = 0.02
    """Standard deviation of the normal initialisation of weights."""
    layernorm_epsilon: Annotated[float, Field(gt=0.0)] = 1e-5


class GPTModelConfig(ModelSection):
    """Pre-norm decoder; the defaults are GPT-2 (Radford et al., 2019).

    Llama style (Touvron et al., 2023) is position_embedding_type: rope, normalization: RMSNorm, swiglu: true,
    add_bias_linear: false and untie_embeddings_and_output_weights: true.
    """

    kind: Literal["gpt"]
    position_embedding_type: Literal["learned_absolute", "rope"] = "learned_absolute"
    """`rope` rotates queries and keys (Su et al., 2021) and has no parameters; max_position_embeddings then
    only says which sequences are too long."""
    rotary_base: Annotated[float, Field(gt=1.0)] = 10000.0
    """Base of the rotation wavelengths; rope only."""
    rope_scaling_factor: Annotated[float, Field(ge=1.0)] | None = None
    """Llama 3.1's stretching of the long wavelengths, for contexts that many times 8192; rope only."""
    normalization: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    swiglu: bool = False
    """MLP silu(gate) * up (Shazeer, 2020), three matrices of ffn_hidden_size; false is GELU with two."""
    num_query_groups: PositiveInt | None = None
    """Key and value heads, each shared by num_attention_heads / num_query_groups queries (Ainslie et al.,
    2023); null gives every query its own."""
    add_bias_linear: bool = True
    """Biases in the linear layers of attention and MLP."""
    untie_embeddings_and_output_weights: bool = False
    """An output matrix of its own; false reuses the word embeddings."""


class BertModelConfig(ModelSection):
    """BERT (Devlin et al., 2019): encoder with masked-LM and next-sentence heads."""

    kind: Literal["bert"]
    norm_position: Literal["post", "pre"] = "post"
    """`post` is the original BERT; `pre` is Megatron's, stabler when deep."""
    add_binary_head: bool = True
    """Pooler and head for the second objective on sentence pairs; false predicts masked tokens only."""
    nsp_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """lambda in loss = MLM + lambda * NSP."""
    layernorm_epsilon: Annotated[float, Field(gt=0.0)] = 1e-12


ModelConfig = GPTModelConfig | BertModelConfig
_MODEL: TypeAdapter[ModelConfig] = TypeAdapter(Annotated[ModelConfig, Field(discriminator="kind")])


def parse_model(section: object) -> ModelConfig:
    """The `model` section of a saved configuration.

    Raises:
        ValidationError: It is none.
    """
    return _MODEL.validate_python(section)


def model_problems(model: ModelConfig, tensor_model_parallel_size: int) -> list[str]:
    """What contradicts itself in a model section, or cannot be split over so many tensor-parallel ranks."""
    heads, tp = model.num_attention_heads, tensor_model_parallel_size
    problems = []
    if model.hidden_size % heads:
        problems.append(
            f"model.hidden_size: {model.hidden_size} is not a multiple of model.num_attention_heads: {heads}"
        )
    split = [("num_attention_heads", heads), ("ffn_hidden_size", model.ffn_hidden_size)]
    if isinstance(model, GPTModelConfig):
        problems += _gpt_problems(model)
        if model.num_query_groups is not None:
            split.append(("num_query_groups", model.num_query_groups))
    for key, value in split:
        if value % tp:
            problems.append(f"parallel.tensor_model_parallel_size: {tp} does not divide model.{key}: {value}")
    return problems


def _gpt_problems(model: GPTModelConfig) -> list[str]:
    heads, groups = model.num_attention_heads, model.num_query_groups
    problems = []
    if groups is not None and heads % groups:
        problems.append(
            f"model.num_query_groups: {groups} does not divide model.num_attention_heads: {heads}"
        )
    if model.position_embedding_type == "rope":
        if model.hidden_size // heads % 2:
            problems.append(
                f"model.hidden_size / model.num_attention_heads = {model.hidden_size // heads} is odd; rope "
                "rotates pairs of numbers, so choose an even head size"
            )
        return problems
    for key in ("rotary_base", "rope_scaling_factor"):
        if getattr(model, key) != GPTModelConfig.model_fields[key].default:
            problems.append(f"model.{key} is for model.position_embedding_type: rope; remove it")
    return problems
