"""Sequence classification: BERT's encoder with dropout and a linear head on the pooled first token.

Legend: B micro_batch_size, S longest sequence of the micro-batch, H hidden_size, C labels.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.model import BertModelConfig
from pretrain.models.bert import BertEncoder, linear

IGNORED_LABEL = -100
"""Label of rows that only fill a batch: no loss, no count (torch's cross_entropy default)."""


class BertForClassification(nn.Module):
    """One label out of C; computes what transformers' BertForSequenceClassification computes."""

    def __init__(
        self, model: BertModelConfig, num_labels: int, dropout: float | None = None, **layout: Any
    ) -> None:
        """Build with fresh weights.

        Args:
            model: Architecture of the encoder.
            num_labels: C.
            dropout: Before the head; None takes `hidden_dropout`.
            layout: As for the pretraining models.
        """
        super().__init__()
        self.model_config = model
        self.encoder = BertEncoder(model, **layout)
        self.dropout = nn.Dropout(model.hidden_dropout if dropout is None else dropout)
        # Replicated over tensor-parallel ranks: too small to split.
        self.head = linear(model.hidden_size, num_labels, model.init_std)

    def forward(
        self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Classify.

        Args:
            tokens: [B, S] int64.
            token_types: [B, S] int64, segment 0 or 1.
            padding_mask: [B, S] bool, True = a real token.
            labels: [B] int64, or IGNORED_LABEL; None asks for logits.

        Returns:
            {"classification_loss", "accuracy"}: summed cross entropy and number of right answers, fp32
            scalars; or {"logits": [B, C]} without labels.
        """
        _, pooled = self.encoder(tokens, token_types, padding_mask)
        logits = self.head(self.dropout(pooled)).float()
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        return {"classification_loss": loss, "accuracy": (logits.argmax(-1) == labels).sum().float()}

    def loss_weights(self) -> dict[str, float]:
        """Accuracy is summed and averaged like a loss, but has no weight in training."""
        return {"classification_loss": 1.0, "accuracy": 0.0}

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Rows with a label."""
        rows = float((batch["labels"] != IGNORED_LABEL).sum())
        return {"classification_loss": rows, "accuracy": rows}
