"""GPT: megatron-core's GPTModel with our batch interface and padded-vocabulary loss.

Legend: B micro_batch_size, S seq_length, V padded vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from pretrain.config.derive import padded_vocab_size
from pretrain.config.model import GPTModelConfig
from pretrain.models.rotary import RotaryAngles
from pretrain.models.transformer import gpt_block_spec, gpt_style, transformer_config
from pretrain.models.vocabulary import VocabularyLinear


class GPT(GPTModel):  # type: ignore[misc]
    """Decoder in the style of GPT-2 or Llama, by its configuration."""

    def __init__(self, model: GPTModelConfig, **layout: Any) -> None:
        config = transformer_config(model, **gpt_style(model), **layout)
        rope = model.position_embedding_type == "rope"
        super().__init__(
            config,
            gpt_block_spec(config),
            vocab_size=padded_vocab_size(model),
            max_sequence_length=model.max_position_embeddings,
            share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
            position_embedding_type="none" if rope else "learned_absolute",  # rope is ours, see _preprocess
        )
        self.output_layer.__class__ = VocabularyLinear  # GPTModel does not let its class be chosen
        self.model_config = model
        self.rotary_angles = RotaryAngles(model) if rope else None
        self._only_last = False

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict each next token.

        Args:
            tokens: [B, S] int64.
            labels: [B, S] int64, the token after each position; None asks for logits.
            loss_mask: [B, S] float, weight of each position; None counts all.
            position_ids: [B, S] int, the position that each token gets; None counts from 0.
            document_ids: [B, S] int, tokens attend only to those with the same number; None to all before.
            attention_mask: [B, 1, S, S] bool, or [B, 1, S, T] with a cache (`pretrain.models.cache`); in
                place of document_ids.

        Returns:
            {"lm_loss": summed cross entropy, fp32 scalar}, or {"logits": [B, S, V / TP]} without labels.
        """
        positions = (
            torch.arange(tokens.shape[1], device=tokens.device)[None]  # [1, S]
            if position_ids is None
            else position_ids.long()
        )
        mask = attention_mask
        if document_ids is not None:
            mask = as_bias(document_mask(document_ids), self.embedding.word_embeddings.weight.dtype)
        if labels is None:
            return {"logits": super().forward(tokens, positions, mask)}
        return {"lm_loss": super().forward(tokens, positions, mask, labels=labels, loss_mask=loss_mask)}

    def next_logits(self, tokens: Tensor, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, V / TP] logits behind the last token; the other positions are not projected.

        Args: as for `forward`; not under sequence parallelism.
        """
        self._only_last = True
        try:
            logits: Tensor = self(tokens, position_ids=position_ids, attention_mask=attention_mask)["logits"]
        finally:
            self._only_last = False
        return logits[:, 0]

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor, **_megatron: Any) -> tuple[Any, ...]:
        """Embeddings and rotary angles; called by GPTModel in place of its own, which needs CUDA for rope."""
        hidden = self.embedding(input_ids=input_ids, position_ids=position_ids)
        angles = None if self.rotary_angles is None else self.rotary_angles(position_ids)
        return hidden, angles, None, None, None, None

    def _postprocess(
        self, hidden_states: Tensor, *, labels: Tensor | None, loss_mask: Tensor | None, **_megatron: Any
    ) -> Tensor:
        """[B, S, V / TP] logits, or the summed loss, of [S, B, H]; called by GPTModel in place of its own."""
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else None
        if labels is None:
            if self._only_last:
                hidden_states = hidden_states[-1:]
            logits: Tensor = self.output_layer(hidden_states, weight=weight)[0]
            return logits.transpose(0, 1).contiguous()
        loss: Tensor = self.output_layer(
            hidden_states,
            self.model_config.vocab_size,
            labels=labels.t(),
            weight=weight,
            loss_weights=None if loss_mask is None else loss_mask.t(),
        )
        return loss

    def loss_weights(self) -> dict[str, float]:
        """How the summed losses, each divided by its target count, add up to the training loss."""
        return {"lm_loss": 1.0}

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Predicted targets in a micro-batch, per loss."""
        return {"lm_loss": float(batch["loss_mask"].sum())}


def document_mask(document_ids: Tensor) -> Tensor:
    """Causal attention within documents.

    Args:
        document_ids: [B, S] int, the same number for all tokens of a document.

    Returns:
        [B, 1, S, S] bool, True where the token of the row may attend to that of the column.
    """
    length = document_ids.shape[1]
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same & torch.ones(length, length, dtype=torch.bool, device=same.device).tril()


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to attention scores: 0, or -inf where nothing may be attended to.

    torch would make this of a bool mask in every layer, and keep each for the backward pass.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
