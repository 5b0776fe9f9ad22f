"""Our parameters <-> those of transformers' GPT-2 and BERT: pure functions on dicts of tensors.

One table of links per architecture serves both directions. What differs:

- Query, key and value are one matrix in ours, ordered head by head [q_i; k_i; v_i] (megatron-core's order,
  so that tensor parallelism cuts between heads). GPT-2 orders it [q; k; v]; BERT has three matrices.
- GPT-2 stores linear weights transposed ([in, out], its "Conv1D").
- Our vocabulary rows are padded to a multiple of 128; theirs are not.
- Output projections are tied to the word embeddings in both; ours does not store them, theirs may.

Legend: V vocabulary, H hidden_size, N heads, D head size, F ffn_hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config import ConfigError
from pretrain.config.derive import padded_vocab_size
from pretrain.config.model import BertModelConfig, GPTModelConfig, ModelSection

TensorDict = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Link:
    """One of our parameters and what it is called and looks like in transformers."""

    ours: str
    theirs: tuple[str, ...]
    to_hf: Callable[[Tensor], tuple[Tensor, ...]]
    from_hf: Callable[[tuple[Tensor, ...]], Tensor]


def gpt_links(model: GPTModelConfig) -> list[Link]:
    """GPT <-> GPT2LMHeadModel."""
    heads = model.num_attention_heads
    links = [
        _vocabulary("embedding.word_embeddings.weight", "transformer.wte.weight", model),
        _same("embedding.position_embeddings.weight", "transformer.wpe.weight"),
    ]
    for n in range(model.num_layers):
        ours, theirs = f"decoder.layers.{n}", f"transformer.h.{n}"
        attention, mlp = f"{ours}.self_attention", f"{ours}.mlp"
        links += _both(f"{ours}.input_layernorm", f"{theirs}.ln_1", _same)
        links += [
            _gpt2_qkv(f"{attention}.linear_qkv.{part}", f"{theirs}.attn.c_attn.{part}", heads)
            for part in ("weight", "bias")
        ]
        links += _both(f"{attention}.linear_proj", f"{theirs}.attn.c_proj", _conv1d)
        links += _both(f"{ours}.pre_mlp_layernorm", f"{theirs}.ln_2", _same)
        links += _both(f"{mlp}.linear_fc1", f"{theirs}.mlp.c_fc", _conv1d)
        links += _both(f"{mlp}.linear_fc2", f"{theirs}.mlp.c_proj", _conv1d)
    return links + _both("decoder.final_layernorm", "transformer.ln_f", _same)


def bert_encoder_links(model: BertModelConfig) -> list[Link]:
    """BertEncoder <-> the `bert.` part of transformers' BERT models.

    Raises:
        ConfigError: For a pre-norm model, which transformers' BERT cannot compute.
    """
    if model.norm_position != "post":
        raise ConfigError(
            "model.norm_position: pre has no counterpart in transformers' BERT, which normalises after each "
            "block; only norm_position: post converts to and from Hugging Face"
        )
    heads = model.num_attention_heads
    embeddings = "encoder.embeddings"
    links = [
        _vocabulary(f"{embeddings}.word_embeddings.weight", "bert.embeddings.word_embeddings.weight", model),
        _same(f"{embeddings}.position_embeddings.weight", "bert.embeddings.position_embeddings.weight"),
        _same(f"{embeddings}.token_type_embeddings.weight", "bert.embeddings.token_type_embeddings.weight"),
        *_both(f"{embeddings}.norm", "bert.embeddings.LayerNorm", _same),
    ]
    for n in range(model.num_layers):
        ours, theirs = f"encoder.layers.{n}", f"bert.encoder.layer.{n}"
        links += [
            _bert_qkv(f"{ours}.attention.linear_qkv.{part}", f"{theirs}.attention.self", part, heads)
            for part in ("weight", "bias")
        ]
        links += _both(f"{ours}.attention.linear_proj", f"{theirs}.attention.output.dense", _same)
        links += _both(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm", _same)
        links += _both(f"{ours}.mlp.linear_fc1", f"{theirs}.intermediate.dense", _same)
        links += _both(f"{ours}.mlp.linear_fc2", f"{theirs}.output.dense", _same)
        links += _both(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm", _same)
    return links + _both("encoder.pooler", "bert.pooler.dense", _same)


def bert_pretraining_links(model: BertModelConfig) -> list[Link]:
    """BertForPreTraining (ours) <-> BertForPreTraining (theirs)."""
    return [
        *bert_encoder_links(model),
        *_both("mlm_head.transform", "cls.predictions.transform.dense", _same),
        *_both("mlm_head.norm", "cls.predictions.transform.LayerNorm", _same),
        _vocabulary("mlm_head.output.bias", "cls.predictions.bias", model),
        *_both("nsp_head", "cls.seq_relationship", _same),
    ]


def bert_classification_links(model: BertModelConfig) -> list[Link]:
    """BertForClassification <-> BertForSequenceClassification."""
    return [*bert_encoder_links(model), *_both("head", "classifier", _same)]


def to_hf(links: list[Link], parameters: Mapping[str, Tensor]) -> TensorDict:
    """Their state dict (without tied copies) from our whole parameters.

    Raises:
        ConfigError: If a parameter is missing, or there is one that no link knows.
    """
    _check_names(parameters, {link.ours for link in links}, "the checkpoint")
    return {
        name: tensor.contiguous()
        for link in links
        for name, tensor in zip(link.theirs, link.to_hf(parameters[link.ours]), strict=True)
    }


def from_hf(links: list[Link], state: Mapping[str, Tensor]) -> TensorDict:
    """Our whole parameters from their state dict; tied copies and unrelated heads in it are ignored.

    Raises:
        ConfigError: If a tensor is missing.
    """
    wanted = {name for link in links for name in link.theirs}
    _check_names({name: state[name] for name in state if name in wanted}, wanted, "the Hugging Face model")
    return {
        link.ours: link.from_hf(tuple(state[name] for name in link.theirs)).contiguous() for link in links
    }


def _check_names(given: Mapping[str, Tensor], wanted: set[str], source: str) -> None:
    missing, unknown = sorted(wanted - given.keys()), sorted(given.keys() - wanted)
    if missing:
        raise ConfigError(
            f"{source} has no {missing[0]} ({len(missing)} missing); is it another kind of model?"
        )
    if unknown:
        raise ConfigError(
            f"{source} holds {unknown[0]}, which this architecture has not ({len(unknown)} such)"
        )


def _both(ours: str, theirs: str, link: Callable[[str, str], Link]) -> list[Link]:
    return [link(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


def _same(ours: str, theirs: str) -> Link:
    return Link(ours, (theirs,), lambda t: (t,), lambda ts: ts[0])


def _conv1d(ours: str, theirs: str) -> Link:
    """[out, in] <-> [in, out]; a bias is its own transpose."""
    return Link(ours, (theirs,), lambda t: (_transposed(t),), lambda ts: _transposed(ts[0]))


def _vocabulary(ours: str, theirs: str, model: ModelSection) -> Link:
    """[padded V, ...] <-> [V, ...]; added rows are zero, no loss ever looks at them."""

    def pad(tensors: tuple[Tensor, ...]) -> Tensor:
        rows = tensors[0]
        return torch.cat([rows, rows.new_zeros(padded_vocab_size(model) - len(rows), *rows.shape[1:])])

    return Link(ours, (theirs,), lambda t: (t[: model.vocab_size],), pad)


def _gpt2_qkv(ours: str, theirs: str, heads: int) -> Link:
    """[N * 3 * D, H] <-> [H, 3 * N * D]; likewise the bias without H."""
    return Link(
        ours,
        (theirs,),
        lambda t: (_transposed(torch.cat(split_heads(t, heads))),),
        lambda ts: merge_heads(_transposed(ts[0]).chunk(3), heads),
    )


def _bert_qkv(ours: str, theirs: str, part: str, heads: int) -> Link:
    """[N * 3 * D, H] <-> three of [N * D, H]; likewise the bias without H."""
    names = tuple(f"{theirs}.{name}.{part}" for name in ("query", "key", "value"))
    return Link(ours, names, lambda t: split_heads(t, heads), lambda ts: merge_heads(ts, heads))


def split_heads(fused: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value [N * D, ...] from the head-interleaved [N * 3 * D, ...]."""
    by_head = fused.reshape(heads, 3, -1, *fused.shape[1:])  # [N, 3, D, ...]
    q, k, v = (by_head[:, i].reshape(-1, *fused.shape[1:]) for i in range(3))
    return q, k, v


def merge_heads(qkv: tuple[Tensor, ...], heads: int) -> Tensor:
    """The inverse of `split_heads`."""
    by_head = torch.stack([t.reshape(heads, -1, *t.shape[1:]) for t in qkv], dim=1)  # [N, 3, D, ...]
    return by_head.reshape(-1, *qkv[0].shape[1:])


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.ndim == 2 else tensor
