"""Loss over a vocabulary that is split over tensor-parallel ranks and padded at its end."""

from __future__ import annotations

import torch
from megatron.core import tensor_parallel
from megatron.core.parallel_state import get_tensor_model_parallel_rank
from torch import Tensor


def vocabulary_loss(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """Cross entropy per position over the real vocabulary.

    Args:
        logits: [..., V / TP], this rank's slice of the padded vocabulary. Overwritten.
        labels: [...] token ids.
        vocab_size: Pieces of the tokenizer; the padding behind them takes no probability, so the loss does
            not
            depend on how far the embedding is padded.

    Returns:
        [...] fp32 losses, the same on every tensor-parallel rank.
    """
    first = get_tensor_model_parallel_rank() * logits.shape[-1]
    real = max(0, min(logits.shape[-1], vocab_size - first))
    if real < logits.shape[-1]:
        logits[..., real:] = torch.finfo(logits.dtype).min
    losses: Tensor = tensor_parallel.vocab_parallel_cross_entropy(logits, labels)
    return losses
