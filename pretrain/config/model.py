"""The `model` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
    """GPT-2 (Radford et al., 2019): pre-norm decoder, learned positions, tied embeddings."""

    kind: Literal["gpt"]


class BertModelConfig(ModelSection):
    """BERT (Devlin et al., 2019): encoder with masked-LM and next-sentence heads."""

    kind: Literal["bert"]
    norm_position: Literal["post", "pre"] = "post"
    """`post` is the original BERT; `pre` is Megatron's, stabler when deep."""
    nsp_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """lambda in loss = MLM + lambda * NSP."""
    layernorm_epsilon: Annotated[float, Field(gt=0.0)] = 1e-12
