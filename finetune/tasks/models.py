"""BERT's encoder with the heads of the tasks: on the pooled first token, on every token, on spans.

They compute what transformers' BertForSequenceClassification, BertForMultipleChoice,
BertForTokenClassification and BertForQuestionAnswering compute. Heads are replicated over tensor-parallel
ranks: too small to split. Losses are summed; `target_counts` says what they are divided by, over all ranks.

Legend: B micro_batch_size, S longest sequence of the micro-batch, H hidden_size, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.batches import IGNORED_LABEL
from pretrain.config.model import BertModelConfig
from pretrain.models.bert import BertEncoder, linear

Objective = Literal["classification", "multi_label", "regression"]


class ClassWeights(nn.Module):
    """Weights of the labels in the training loss; an evaluation counts all rows alike."""

    def __init__(self, weights: Sequence[float] | None, outputs: int) -> None:
        super().__init__()
        # No buffer: the engine would round it to bf16.
        self._weights = torch.ones(outputs) if weights is None else torch.tensor(weights)

    def forward(self) -> Tensor:
        """[C] fp32."""
        return self._weights if self.training else torch.ones_like(self._weights)


class BertForSequence(nn.Module):
    """C outputs for a whole sequence, from the pooled first token."""

    def __init__(
        self,
        model: BertModelConfig,
        outputs: int,
        objective: Objective = "classification",
        dropout: float | None = None,
        class_weights: Sequence[float] | None = None,
        **layout: Any,
    ) -> None:
        """Build with fresh weights.

        Args:
            model: Architecture of the encoder.
            outputs: C.
            objective: Which loss: cross entropy, binary cross entropy or squared error.
            dropout: Before the head; None takes `hidden_dropout`.
            class_weights: [C] of the cross entropy in training; None weighs all rows alike.
            layout: As for the pretraining models.
        """
        super().__init__()
        self.model_config, self.objective = model, objective
        self.encoder = BertEncoder(model, **layout)
        self.dropout = nn.Dropout(model.hidden_dropout if dropout is None else dropout)
        self.head = linear(model.hidden_size, outputs, model.init_std)
        self.class_weights = ClassWeights(class_weights, outputs)

    def forward(
        self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Classify.

        Args:
            tokens: [B, S] int64.
            token_types: [B, S] int64, segment 0 or 1.
            padding_mask: [B, S] bool, True = a real token.
            labels: classification [B] int64 or IGNORED_LABEL; multi_label [B, C] and regression [B] float32
                or nan; None asks for logits only.

        Returns:
            {"logits": [B, C] fp32} and with labels {"task_loss": summed fp32 scalar}.
        """
        _, pooled = self.encoder(tokens, token_types, padding_mask)
        logits = self.head(self.dropout(pooled)).float()
        if labels is None:
            return {"logits": logits}
        return {"logits": logits, "task_loss": self._loss(logits, labels)}

    def loss_weights(self) -> dict[str, float]:
        """One loss."""
        return {"task_loss": 1.0}

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Rows with a label, each with its class weight; labels of rows for multi_label."""
        labels = batch["labels"]
        if self.objective == "classification":
            return {"task_loss": _weight_of(labels, self.class_weights())}
        return {"task_loss": float((~labels.isnan()).sum())}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.objective == "classification":
            return _cross_entropy(logits, labels, self.class_weights())
        known = ~labels.isnan()
        targets = labels.nan_to_num(0.0)
        if self.objective == "multi_label":
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        else:
            losses = (logits.squeeze(-1) - targets).square()
        return (losses * known).sum()


class BertForChoices(nn.Module):
    """One output for each choice of a row, from its pooled first token."""

    def __init__(self, model: BertModelConfig, dropout: float | None = None, **layout: Any) -> None:
        """Build with fresh weights; arguments as for BertForSequence."""
        super().__init__()
        self.model_config = model
        self.encoder = BertEncoder(model, **layout)
        self.dropout = nn.Dropout(model.hidden_dropout if dropout is None else dropout)
        self.head = linear(model.hidden_size, 1, model.init_std)

    def forward(
        self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Choose.

        Args:
            tokens: [B, C, S] int64, C choices.
            token_types: [B, C, S] int64.
            padding_mask: [B, C, S] bool.
            labels: [B] int64, the right choice, or IGNORED_LABEL; None asks for logits only.

        Returns:
            {"logits": [B, C] fp32} and with labels {"task_loss": summed fp32 scalar}.
        """
        flat = (part.flatten(0, 1) for part in (tokens, token_types, padding_mask))
        _, pooled = self.encoder(*flat)
        logits = self.head(self.dropout(pooled)).float().view(tokens.shape[:2])
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        return {"logits": logits, "task_loss": loss}

    def loss_weights(self) -> dict[str, float]:
        """One loss."""
        return {"task_loss": 1.0}

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Rows with a right choice."""
        return {"task_loss": float((batch["labels"] != IGNORED_LABEL).sum())}


class BertForTokens(nn.Module):
    """C outputs for every token."""

    def __init__(
        self,
        model: BertModelConfig,
        outputs: int,
        dropout: float | None = None,
        class_weights: Sequence[float] | None = None,
        **layout: Any,
    ) -> None:
        """Build with fresh weights; arguments as for BertForSequence."""
        super().__init__()
        self.model_config = model
        self.encoder = BertEncoder(model, pooler=False, **layout)
        self.dropout = nn.Dropout(model.hidden_dropout if dropout is None else dropout)
        self.head = linear(model.hidden_size, outputs, model.init_std)
        self.class_weights = ClassWeights(class_weights, outputs)

    def forward(
        self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor, tags: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Tag.

        Args:
            tokens: [B, S] int64.
            token_types: [B, S] int64.
            padding_mask: [B, S] bool.
            tags: [B, S] int64, IGNORED_LABEL at all but the first token of a word; None asks for logits only.

        Returns:
            {"logits": [B, S, C] fp32} and with tags {"task_loss": summed fp32 scalar}.
        """
        hidden, _ = self.encoder(tokens, token_types, padding_mask)
        logits = self.head(self.dropout(hidden)).float().transpose(0, 1)
        if tags is None:
            return {"logits": logits}
        flat = logits.reshape(-1, logits.shape[-1])
        return {"logits": logits, "task_loss": _cross_entropy(flat, tags.reshape(-1), self.class_weights())}

    def loss_weights(self) -> dict[str, float]:
        """One loss."""
        return {"task_loss": 1.0}

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Tagged words, each with its class weight."""
        return {"task_loss": _weight_of(batch["tags"], self.class_weights())}


class BertForSpans(nn.Module):
    """Two outputs for every token: how well an answer begins and ends there."""

    def __init__(self, model: BertModelConfig, **layout: Any) -> None:
        super().__init__()
        self.model_config = model
        self.encoder = BertEncoder(model, pooler=False, **layout)
        self.head = linear(model.hidden_size, 2, model.init_std)

    def forward(
        self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Find the answer.

        Args:
            tokens: [B, S] int64.
            token_types: [B, S] int64.
            padding_mask: [B, S] bool.
            labels: [B, 2] int64 first and last token of the answer, or IGNORED_LABEL; None asks for logits
                only.

        Returns:
            {"logits": [B, S, 2] fp32} and with labels {"task_loss": summed fp32 scalar, mean of both ends}.
        """
        hidden, _ = self.encoder(tokens, token_types, padding_mask)
        logits = self.head(hidden).float().transpose(0, 1)
        if labels is None:
            return {"logits": logits}
        scores = logits.masked_fill(~padding_mask[..., None], torch.finfo(logits.dtype).min)
        ends = (F.cross_entropy(scores[..., end], labels[:, end], reduction="sum") for end in (0, 1))
        return {"logits": logits, "task_loss": sum(ends, torch.zeros_like(logits[0, 0, 0])) / 2}

    def loss_weights(self) -> dict[str, float]:
        """One loss."""
        return {"task_loss": 1.0}

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Examples with an answer."""
        return {"task_loss": float((batch["labels"][:, 0] != IGNORED_LABEL).sum())}


class BertForEmbedding(nn.Module):
    """A vector for a whole sequence: the mean of its tokens' last hidden states, or the first one."""

    def __init__(self, model: BertModelConfig, pooling: Literal["mean", "cls"], **layout: Any) -> None:
        super().__init__()
        self.pooling = pooling
        self.encoder = BertEncoder(model, pooler=False, **layout)

    def forward(self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        """{"logits": [B, H]} of [B, S] ids, segments and mask (True = a real token)."""
        hidden, _ = self.encoder(tokens, token_types, padding_mask)
        if self.pooling == "cls":
            return {"logits": hidden[0]}
        real = padding_mask.t()[..., None]
        return {"logits": (hidden * real).sum(0) / real.sum(0)}

    def loss_weights(self) -> dict[str, float]:
        """It is not trained."""
        return {}

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """It is not trained."""
        return {}


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Summed over [n]; [n, C] fp32 logits."""
    weights = weights.to(logits.device)
    return F.cross_entropy(logits, labels, weights, ignore_index=IGNORED_LABEL, reduction="sum")


def _weight_of(labels: Tensor, weights: Tensor) -> float:
    """What torch's weighted mean divides by."""
    return float(weights.to(labels.device)[labels[labels != IGNORED_LABEL]].double().sum())
