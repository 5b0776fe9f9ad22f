"""BERT (Devlin et al., 2019) composed from megatron-core's parallel parts.

Legend: B micro_batch_size, S seq_length, T tokens of a micro-batch without padding, H hidden_size, M masked
positions in the micro-batch, V padded vocabulary.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import init_method_normal
from torch import Tensor, nn

from pretrain.config.derive import padded_vocab_size
from pretrain.config.model import BertModelConfig
from pretrain.models.norm import LayerNorm
from pretrain.models.padding import Kept, keep
from pretrain.models.transformer import mlp_parts, self_attention_parts, transformer_config
from pretrain.models.vocabulary import VocabularyLinear


class BertEmbeddings(nn.Module):
    """Token + position + segment embeddings, normalised (post-norm only) and dropped out."""

    def __init__(self, model: BertModelConfig, config: TransformerConfig) -> None:
        super().__init__()
        self.word_embeddings = tensor_parallel.VocabParallelEmbedding(
            padded_vocab_size(model), model.hidden_size, init_method=config.init_method, config=config
        )
        self.position_embeddings = _embedding(model.max_position_embeddings, model)
        self.token_type_embeddings = _embedding(2, model)
        post = model.norm_position == "post"
        self.norm = block_norm(model, config) if post else nn.Identity()
        self.dropout = nn.Dropout(model.hidden_dropout)
        self.sequence_parallel = config.sequence_parallel

    def forward(self, tokens: Tensor, token_types: Tensor, kept: Kept) -> Tensor:
        """[B, S] ids and segments to [T, 1, H] activations, [T / TP, 1, H] under sequence parallelism."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        summed = (
            self.word_embeddings(tokens)
            + self.position_embeddings(positions)
            + self.token_type_embeddings(token_types)
        )
        rows = kept.take(summed.transpose(0, 1))
        if self.sequence_parallel:
            rows = tensor_parallel.scatter_to_sequence_parallel_region(rows)
        hidden: Tensor = self.dropout(self.norm(rows))
        return hidden


class BertLayer(nn.Module):
    """Attention and MLP, each with a residual; the norm stands behind (post) or before (pre) each block."""

    def __init__(self, model: BertModelConfig, config: TransformerConfig, layer_number: int) -> None:
        super().__init__()
        self.post_norm = model.norm_position == "post"
        self.attention = SelfAttention(
            config, self_attention_parts(), layer_number=layer_number, attn_mask_type=AttnMaskType.padding
        )
        self.attention_norm = block_norm(model, config)
        self.mlp = MLP(config, mlp_parts(), ffn_hidden_size=model.ffn_hidden_size)
        self.mlp_norm = block_norm(model, config)
        self.dropout = nn.Dropout(model.hidden_dropout)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """[T, 1, H] to [T, 1, H]; attention_mask as in SdpaCoreAttention."""
        if self.post_norm:
            hidden = self.attention_norm(hidden + self._attend(hidden, attention_mask))
            normed: Tensor = self.mlp_norm(hidden + self._feed_forward(hidden))
            return normed
        hidden = hidden + self._attend(self.attention_norm(hidden), attention_mask)
        return hidden + self._feed_forward(self.mlp_norm(hidden))

    def _attend(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        output, bias = self.attention(hidden, attention_mask)
        dropped: Tensor = self.dropout(output + bias)
        return dropped

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        output, bias = self.mlp(hidden)
        dropped: Tensor = self.dropout(output + bias)
        return dropped


class BertEncoder(nn.Module):
    """Embeddings, layers and pooler: what pretraining and finetuning share."""

    def __init__(
        self, model: BertModelConfig, *, pooler: bool = True, recompute: str = "none", **layout: Any
    ) -> None:
        super().__init__()
        self.model_config = model
        self.recompute = recompute == "full"
        extra: dict[str, Any] = {"activation_func": F.gelu}
        if (
            model.norm_position == "post"
        ):  # the paper's initialisation; pre-norm scales output layers by depth
            extra["output_layer_init_method"] = init_method_normal(model.init_std)
        by_megatron = "none" if self.recompute else recompute
        self.config = transformer_config(model, recompute=by_megatron, **layout, **extra)
        self.embeddings = BertEmbeddings(model, self.config)
        self.layers = nn.ModuleList(
            BertLayer(model, self.config, number + 1) for number in range(model.num_layers)
        )
        pre = model.norm_position == "pre"
        self.final_norm = block_norm(model, self.config) if pre else nn.Identity()
        self.pooler = linear(model.hidden_size, model.hidden_size, model.init_std) if pooler else None

    def forward(
        self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Encode.

        Args:
            tokens: [B, S] int64.
            token_types: [B, S] int64, segment 0 or 1.
            padding_mask: [B, S] bool, True = a real token.

        Returns:
            [S, B, H] hidden states, without meaning at padding, and [B, H] pooled first token (dense + tanh;
            None without pooler).
        """
        shared_by = self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1
        kept = keep(padding_mask, multiple_of=shared_by)
        layers: list[Any] = list(self.layers)
        for layer in layers:
            layer.attention.core_attention.kept = kept
        attention_mask = padding_mask[:, None, None, :]
        if self.config.sequence_parallel:
            with tensor_parallel.get_cuda_rng_tracker().fork():  # tensor ranks hold different positions
                part = self._encode(tokens, token_types, kept, attention_mask)
            # The heads compute the same on every tensor rank, so each takes its slice of their gradient.
            rows: Tensor = tensor_parallel.gather_from_sequence_parallel_region(
                part, tensor_parallel_output_grad=False
            )
        else:
            rows = self._encode(tokens, token_types, kept, attention_mask)
        hidden = kept.put(rows)
        return hidden, None if self.pooler is None else torch.tanh(self.pooler(hidden[0]))

    def _encode(self, tokens: Tensor, token_types: Tensor, kept: Kept, attention_mask: Tensor) -> Tensor:
        """[B, S] to [T, 1, H], [T / TP, 1, H] under sequence parallelism."""
        hidden: Tensor = self.embeddings(tokens, token_types, kept)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                hidden = tensor_parallel.checkpoint(layer, False, hidden, attention_mask)
            else:
                hidden = layer(hidden, attention_mask)
        normed: Tensor = self.final_norm(hidden)
        return normed


class BertMaskedLMHead(nn.Module):
    """Transform, then project on the tied word embeddings, split over the vocabulary."""

    def __init__(self, model: BertModelConfig, config: TransformerConfig) -> None:
        super().__init__()
        self.vocab_size = model.vocab_size
        self.transform = linear(model.hidden_size, model.hidden_size, model.init_std)
        # Not one of ours: masked positions come from the whole sequence on every tensor-parallel rank.
        self.norm = nn.LayerNorm(model.hidden_size, model.layernorm_epsilon)
        whole = copy(config)  # the same for the projection: its input is not split
        whole.sequence_parallel = False
        self.output = VocabularyLinear(
            model.hidden_size,
            padded_vocab_size(model),
            config=whole,
            init_method=config.init_method,
            bias=True,
            skip_weight_param_allocation=True,
        )

    def forward(self, hidden: Tensor, word_embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """[M, H] hidden states to [M, V / TP] logits, or with [M] labels to their summed loss."""
        transformed = self.norm(F.gelu(self.transform(hidden)))
        output: Tensor
        if labels is None:
            output, _ = self.output(transformed, weight=word_embeddings)
        else:
            output = self.output(transformed, self.vocab_size, labels=labels, weight=word_embeddings)
        return output


class BertForPreTraining(nn.Module):
    """Masked-LM loss + nsp_weight x next-sentence loss; without `add_binary_head` the first alone."""

    def __init__(self, model: BertModelConfig, **layout: Any) -> None:
        super().__init__()
        self.model_config = model
        self.encoder = BertEncoder(model, pooler=model.add_binary_head, **layout)
        self.mlm_head = BertMaskedLMHead(model, self.encoder.config)
        self.nsp_head = linear(model.hidden_size, 2, model.init_std) if model.add_binary_head else None

    def forward(
        self,
        tokens: Tensor,
        token_types: Tensor,
        padding_mask: Tensor,
        masked_positions: Tensor | None = None,
        masked_labels: Tensor | None = None,
        next_sentence_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Encode and, with labels, compute the losses.

        Args:
            tokens: [B, S] int64, masked.
            token_types: [B, S] int64.
            padding_mask: [B, S] bool, True = a real token.
            masked_positions: [M] int64 indices into the flattened [B, S]; None predicts every position.
            masked_labels: [M] int64 original tokens.
            next_sentence_labels: [B] int64, 0 = B follows A, 1 = random, -100 = not to be predicted.

        Returns:
            {"mlm_loss", "nsp_loss"}: summed fp32 losses; without labels {"logits": [B, S, V / TP],
            "nsp_logits": [B, 2]}. No second ones without a binary head.
        """
        hidden, pooled = self.encoder(tokens, token_types, padding_mask)
        by_sample = hidden.transpose(0, 1).reshape(-1, hidden.shape[-1])  # [B * S, H]
        embedding = self.encoder.embeddings.word_embeddings.weight
        nsp_logits = None if self.nsp_head is None else self.nsp_head(pooled)
        if masked_positions is None or masked_labels is None:
            logits = self.mlm_head(by_sample, embedding).view(*tokens.shape, -1)
            return {"logits": logits} | ({} if nsp_logits is None else {"nsp_logits": nsp_logits})
        masked = by_sample.index_select(0, masked_positions)
        losses = {"mlm_loss": self.mlm_head(masked, embedding, masked_labels)}
        if nsp_logits is not None and next_sentence_labels is not None:
            losses["nsp_loss"] = F.cross_entropy(nsp_logits.float(), next_sentence_labels, reduction="sum")
        return losses

    def loss_weights(self) -> dict[str, float]:
        """How the summed losses, each divided by its target count, add up to the training loss."""
        binary = {} if self.nsp_head is None else {"nsp_loss": self.model_config.nsp_weight}
        return {"mlm_loss": 1.0} | binary

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Predicted targets in a micro-batch, per loss."""
        counts = {"mlm_loss": float(batch["masked_labels"].numel())}
        if self.nsp_head is not None:
            counts["nsp_loss"] = float((batch["next_sentence_labels"] >= 0).sum())
        return counts


def block_norm(model: BertModelConfig, config: TransformerConfig) -> nn.Module:
    """A norm of the encoder, which under sequence parallelism sees its rank's part of the sequence."""
    return LayerNorm(config, model.hidden_size, model.layernorm_epsilon)


def linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    """A replicated linear layer, normal weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def _embedding(rows: int, model: BertModelConfig) -> nn.Embedding:
    table = nn.Embedding(rows, model.hidden_size)
    nn.init.normal_(table.weight, std=model.init_std)
    return table
