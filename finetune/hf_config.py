"""Model sections <-> the configuration objects of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pretrain.config import ConfigError
from pretrain.config.derive import query_groups
from pretrain.config.load import parse_section
from pretrain.config.model import BertModelConfig, GPTModelConfig, ModelConfig

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The constants of Llama 3.1's rope scaling, which megatron-core has fixed."""


def gpt2_config(model: GPTModelConfig) -> Any:
    """The GPT2Config that computes what our GPT computes."""
    from transformers import GPT2Config

    return GPT2Config(
        bos_token_id=None,  # whoever has the tokenizer sets them; the defaults are GPT-2's own
        eos_token_id=None,
        vocab_size=model.vocab_size,
        n_positions=model.max_position_embeddings,
        n_embd=model.hidden_size,
        n_layer=model.num_layers,
        n_head=model.num_attention_heads,
        n_inner=model.ffn_hidden_size,
        activation_function="gelu_new",
        embd_pdrop=model.hidden_dropout,
        resid_pdrop=model.hidden_dropout,
        attn_pdrop=model.attention_dropout,
        layer_norm_epsilon=model.layernorm_epsilon,
        initializer_range=model.init_std,
        tie_word_embeddings=not model.untie_embeddings_and_output_weights,
    )


def llama_config(model: GPTModelConfig) -> Any:
    """The LlamaConfig that computes what our GPT computes; it has no place for hidden_dropout."""
    from transformers import LlamaConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rotary_base}
    if model.rope_scaling_factor is not None:
        rope |= {**LLAMA3_ROPE, "rope_type": "llama3", "factor": model.rope_scaling_factor}
    return LlamaConfig(
        bos_token_id=None,  # whoever has the tokenizer sets them; the defaults are Llama's own
        eos_token_id=None,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=query_groups(model),
        hidden_act="silu",
        max_position_embeddings=model.max_position_embeddings,
        initializer_range=model.init_std,
        rms_norm_eps=model.layernorm_epsilon,
        tie_word_embeddings=not model.untie_embeddings_and_output_weights,
        rope_parameters=rope,
        attention_bias=model.add_bias_linear,
        mlp_bias=model.add_bias_linear,
        attention_dropout=model.attention_dropout,
    )


def gpt_family(model: GPTModelConfig) -> Literal["gpt2", "llama"]:
    """Which of transformers' architectures computes what our GPT computes.

    Raises:
        ConfigError: Neither; names every key that stands against the nearer one.
    """
    grouped = query_groups(model) != model.num_attention_heads
    wanted: dict[Literal["gpt2", "llama"], dict[str, bool]] = {
        "gpt2": {
            "position_embedding_type": model.position_embedding_type == "learned_absolute",
            "normalization": model.normalization == "LayerNorm",
            "swiglu": not model.swiglu,
            "num_query_groups": not grouped,
            "add_bias_linear": model.add_bias_linear,
        },
        "llama": {
            "position_embedding_type": model.position_embedding_type == "rope",
            "normalization": model.normalization == "RMSNorm",
            "swiglu": model.swiglu,
        },
    }
    against = {name: [key for key, fits in keys.items() if not fits] for name, keys in wanted.items()}
    nearest = min(wanted, key=lambda name: len(against[name]))
    if against[nearest]:
        raise ConfigError(
            [
                f"model.{key}: {getattr(model, key)} has no counterpart in transformers' {nearest}, the "
                "nearest architecture; such a model trains and generates, but cannot be converted"
                for key in against[nearest]
            ]
        )
    return nearest


def bert_config(
    model: BertModelConfig, labels: list[str] | None = None, problem_type: str | None = None
) -> Any:
    """BertConfig (post-norm) or MegatronBertConfig (pre-norm) of our BERT.

    Args:
        model: Architecture.
        labels: Names of the outputs of a model for a task.
        problem_type: transformers' name for the loss of a sequence classifier.
    """
    from transformers import BertConfig, MegatronBertConfig

    named: dict[str, Any] = {} if problem_type is None else {"problem_type": problem_type}
    if labels is not None:
        named |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    return (BertConfig if model.norm_position == "post" else MegatronBertConfig)(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        intermediate_size=model.ffn_hidden_size,
        hidden_act="gelu",
        hidden_dropout_prob=model.hidden_dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        max_position_embeddings=model.max_position_embeddings,
        type_vocab_size=2,
        initializer_range=model.init_std,
        layer_norm_eps=model.layernorm_epsilon,
        **named,
    )


def model_section(config: Any, source: str) -> ModelConfig:
    """Our model section for a GPT2Config, LlamaConfig, BertConfig or MegatronBertConfig.

    Raises:
        ConfigError: For another architecture or variant than our models compute; names every reason.
    """
    readers: dict[str, Callable[[Any, str], ModelConfig]] = {
        "gpt2": _gpt2_section,
        "llama": _llama_section,
        "bert": _bert_section,
        "megatron-bert": _bert_section,
    }
    if config.model_type not in readers:
        raise ConfigError(
            f"model_type {config.model_type!r} cannot be imported, only {', '.join(readers)}", source=source
        )
    return readers[config.model_type](config, source)


def _gpt2_section(config: Any, source: str) -> GPTModelConfig:
    wanted = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    _check(config, wanted, source)
    if config.embd_pdrop != config.resid_pdrop:
        raise ConfigError("embd_pdrop and resid_pdrop differ; our GPT has one hidden_dropout", source=source)
    section = {
        "kind": "gpt",
        "vocab_size": config.vocab_size,
        "num_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "ffn_hidden_size": config.n_inner or 4 * config.n_embd,
        "num_attention_heads": config.n_head,
        "max_position_embeddings": config.n_positions,
        "hidden_dropout": config.resid_pdrop,
        "attention_dropout": config.attn_pdrop,
        "init_std": config.initializer_range,
        "layernorm_epsilon": config.layer_norm_epsilon,
        "untie_embeddings_and_output_weights": not config.tie_word_embeddings,
    }
    return parse_section(GPTModelConfig, section, source)


def _llama_section(config: Any, source: str) -> GPTModelConfig:
    rope = config.rope_parameters
    _check(
        config,
        {
            "hidden_act": ("silu",),
            "head_dim": (config.hidden_size // config.num_attention_heads,),
            "mlp_bias": (config.attention_bias,),
        },
        source,
    )
    scaled = rope["rope_type"] == "llama3" and all(rope[key] == value for key, value in LLAMA3_ROPE.items())
    if rope["rope_type"] != "default" and not scaled:
        raise ConfigError(
            f"rope_parameters: {rope} is not supported, only the rope_type default, or llama3 with "
            f"{LLAMA3_ROPE}",
            source=source,
        )
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    section = {
        "kind": "gpt",
        "vocab_size": config.vocab_size,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": heads,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_dropout": 0.0,
        "attention_dropout": config.attention_dropout,
        "init_std": config.initializer_range,
        "layernorm_epsilon": config.rms_norm_eps,
        "position_embedding_type": "rope",
        "rotary_base": rope["rope_theta"],
        "rope_scaling_factor": rope["factor"] if scaled else None,
        "normalization": "RMSNorm",
        "swiglu": True,
        "num_query_groups": None if groups == heads else groups,
        "add_bias_linear": config.attention_bias,
        "untie_embeddings_and_output_weights": not config.tie_word_embeddings,
    }
    return parse_section(GPTModelConfig, section, source)


def _bert_section(config: Any, source: str) -> BertModelConfig:
    wanted = {
        "hidden_act": ("gelu",),
        "type_vocab_size": (2,),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }
    _check(config, wanted, source)
    section = {
        "kind": "bert",
        "vocab_size": config.vocab_size,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
        "init_std": config.initializer_range,
        "layernorm_epsilon": config.layer_norm_eps,
        "norm_position": "post" if config.model_type == "bert" else "pre",
        "add_binary_head": not any(name.endswith("ForMaskedLM") for name in config.architectures or []),
    }
    return parse_section(BertModelConfig, section, source)


def _check(config: Any, wanted: dict[str, tuple[Any, ...]], source: str) -> None:
    problems = [
        f"{key}: {value!r} is not supported, only {' or '.join(map(repr, allowed))}"
        for key, allowed in wanted.items()
        if (value := getattr(config, key, allowed[0])) not in allowed
    ]
    if problems:
        raise ConfigError(problems, source=source)
