"""From our model configuration to megatron-core's TransformerConfig and layer parts."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from pretrain.config.derive import query_groups
from pretrain.config.model import GPTModelConfig, ModelSection
from pretrain.models.attention import SdpaCoreAttention
from pretrain.models.gelu import gelu_tanh
from pretrain.models.norm import norm_class
from pretrain.models.swiglu import SwiGLU
from pretrain.parallel.device import DTYPES


def transformer_config(
    model: ModelSection,
    *,
    precision: str,
    tensor_model_parallel_size: int,
    recompute: str,
    sequence_parallel: bool = False,
    **extra: Any,
) -> TransformerConfig:
    """megatron-core's configuration of one of our models.

    `use_cpu_initialization` draws each full weight and slices it, which makes the initial weights independent
    of TP. Fused gradient accumulation stays off: DeepSpeed has no `main_grad`.
    """
    full = recompute == "full"
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        layernorm_epsilon=model.layernorm_epsilon,
        init_method_std=model.init_std,
        params_dtype=DTYPES[precision],
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        tensor_model_parallel_size=tensor_model_parallel_size,
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        recompute_granularity=None if recompute == "none" else recompute,
        recompute_method="uniform" if full else None,
        recompute_num_layers=1 if full else None,
        **extra,
    )


def gpt_style(model: GPTModelConfig) -> dict[str, Any]:
    """What a GPT adds to `transformer_config`: the choices between GPT-2 and Llama."""
    return {
        "activation_func": F.silu if model.swiglu else gelu_tanh,
        "gated_linear_unit": model.swiglu,
        "use_te_activation_func": model.swiglu,
        "normalization": model.normalization,
        "num_query_groups": query_groups(model),
        "add_bias_linear": model.add_bias_linear,
    }


def gpt_block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """Pre-norm decoder layers of megatron-core's own linears with our core attention and norms."""
    layer = get_gpt_layer_local_spec()
    norm = norm_class(config)
    layer.submodules.self_attention.submodules.core_attention = SdpaCoreAttention
    if config.use_te_activation_func:  # a module of ours, in spite of the name
        layer.submodules.mlp.submodules.activation_func = SwiGLU
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = norm
    return TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers, layer_norm=norm)


def self_attention_parts() -> SelfAttentionSubmodules:
    """Parts of a self-attention block, for layers that we compose ourselves."""
    return SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear, core_attention=SdpaCoreAttention, linear_proj=RowParallelLinear
    )


def mlp_parts() -> MLPSubmodules:
    """Parts of an MLP block, for layers that we compose ourselves."""
    return MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
