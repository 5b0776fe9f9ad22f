"""Model sections <-> the configuration objects of transformers."""

from __future__ import annotations

from typing import Any

from pretrain.config import ConfigError
from pretrain.config.load import parse_section
from pretrain.config.model import BertModelConfig, GPTModelConfig


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
    )


def bert_config(model: BertModelConfig, labels: list[str] | None = None) -> Any:
    """The BertConfig that computes what our post-norm BERT computes; with labels that of a classifier."""
    from transformers import BertConfig

    named: dict[str, Any] = {}
    if labels is not None:
        named = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }
    return BertConfig(
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


def model_section(config: Any, source: str) -> GPTModelConfig | BertModelConfig:
    """Our model section for a GPT2Config or BertConfig.

    Raises:
        ConfigError: For another architecture or variant than our models compute; names every reason.
    """
    if config.model_type == "gpt2":
        return _gpt_section(config, source)
    if config.model_type == "bert":
        return _bert_section(config, source)
    raise ConfigError(
        f"model_type {config.model_type!r} cannot be imported, only gpt2 and bert", source=source
    )


def _gpt_section(config: Any, source: str) -> GPTModelConfig:
    wanted = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
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
