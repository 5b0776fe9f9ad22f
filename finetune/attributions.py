"""Integrated gradients of an output and the attention of every layer, of a BERT or a GPT.

Legend: B texts, S tokens, L layers, N heads, G heads of keys, D head size, H hidden_size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor

from finetune.tasks.pairs import special_ids
from finetune.text import TextCodec, bos_id
from pretrain.config import ConfigError

STEPS_AT_A_TIME = 16


@contextmanager
def kept_attention(model: Any) -> Iterator[list[Tensor]]:
    """Collect the attention [N, S, S] of each layer to the first text of a batch, while the block runs.

    It is computed from queries and keys once more: the model's own attention never holds it.
    """
    kept: list[Tensor] = []

    def keep(core: Any, inputs: Any) -> None:
        query, key, _, mask = inputs[:4]  # [S, B, N, D], [S, B, G, D]
        if core.kept is not None:
            query, key = core.kept.put(query), core.kept.put(key)
        query, key = (part[:, 0].transpose(0, 1).float() for part in (query, key))  # [N, S, D], [G, S, D]
        key = key.repeat_interleave(len(query) // len(key), dim=0)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if is_gpt(model):
            allowed = torch.ones_like(scores[0], dtype=torch.bool).tril()
        else:
            allowed = mask[0]  # [1, 1, S], True = may be attended to
        kept.append(scores.masked_fill(~allowed, float("-inf")).softmax(-1))

    hooks = [core.register_forward_pre_hook(keep) for core in _attentions(model)]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def integrated(
    model: Any, batch: Mapping[str, Tensor], empty: Tensor, index: tuple[int, ...], steps: int
) -> tuple[Tensor, float]:
    """Integrated gradients of an output with respect to the word embeddings.

    Args:
        model: Ours, whole.
        batch: Its arguments, one text.
        empty: [1, S] tokens of the text to compare with.
        index: Of the output in the logits of a text.
        steps: Points of the integral.

    Returns:
        [S] share of each token, and by how much their sum is off.
    """
    others = {name: values for name, values in batch.items() if name != "tokens"}

    def output(ids: Tensor) -> Tensor:
        expanded = {name: values.expand(len(ids), -1) for name, values in others.items()}
        logits: Tensor = model(ids, **expanded)["logits"][(slice(None), *index)]
        return logits

    gradients = LayerIntegratedGradients(output, _word_embeddings(model))
    found, delta = gradients.attribute(
        batch["tokens"],
        empty,
        n_steps=steps,
        internal_batch_size=STEPS_AT_A_TIME,
        return_convergence_delta=True,
    )
    return found[0].sum(-1), float(delta.abs().max())


def empty_text(model: Any, codec: TextCodec, tokens: Tensor) -> Tensor:
    """[1, S] the text that says nothing: [PAD] between [CLS] and [SEP] for a BERT, ends of text for a GPT.

    Raises:
        ConfigError: The tokenizer lacks them.
    """
    if not is_gpt(model):
        cls_id, sep_id, pad_id = special_ids(codec)
        special = (tokens == cls_id) | (tokens == sep_id)
        return torch.where(special, tokens, torch.full_like(tokens, pad_id))
    if codec.eod_id is None:
        raise ConfigError("the tokenizer has no end of text, which a prompt is compared with")
    first = bos_id(codec)
    special = tokens == (codec.eod_id if first is None else first)
    return torch.where(special, tokens, torch.full_like(tokens, codec.eod_id))


def is_gpt(model: Any) -> bool:
    """Whether a model is a GPT and not a BERT."""
    return bool(model.model_config.kind == "gpt")


def _attentions(model: Any) -> list[Any]:
    if is_gpt(model):
        return [layer.self_attention.core_attention for layer in model.decoder.layers]
    return [layer.attention.core_attention for layer in model.encoder.layers]


def _word_embeddings(model: Any) -> Any:
    return model.embedding.word_embeddings if is_gpt(model) else model.encoder.embeddings.word_embeddings
