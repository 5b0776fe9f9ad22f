"""Core attention: torch's scaled_dot_product_attention, or ours on CPU; megatron-core's own needs CUDA."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.models import cpu_attention
from pretrain.models.padding import Kept
from pretrain.parallel.products import is_slow


class KeyValueStore(Protocol):
    """Where earlier keys and values are kept (`pretrain.models.cache`)."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append [S, B, G, D] keys and values; returns all of them, oldest first."""


class SdpaCoreAttention(torch.nn.Module):
    """softmax(Q K^T / sqrt(D)) V on this rank's heads.

    Shapes: S seq_length, B micro-batch, N heads and G query groups on this rank, D head size. Dropout draws
    from the tensor-parallel stream, because each rank holds other heads. Under sequence parallelism the whole
    block already draws from it, and entering it again would repeat its numbers.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        **_megatron: Any,
    ) -> None:
        super().__init__()
        self.causal = attn_mask_type == AttnMaskType.causal
        self.dropout = config.attention_dropout
        self.cache: KeyValueStore | None = None
        self.kept: Kept | None = None
        """Which T tokens of the rows are there, where padding is left out; whoever owns the layer sets it."""
        self.own_stream = not config.sequence_parallel

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_megatron: Any
    ) -> Tensor:
        """Attend.

        Args:
            query: [S, B, N, D].
            key: [S, B, G, D]; N / G neighbouring queries share one key and value.
            value: [S, B, G, D].
            attention_mask: [B, 1, 1, S] or [B, 1, S, S] bool, True = may be attended to; None = all, or
                causal, by layer type. A mask stands alone: for a causal layer it must be causal itself. With
                a cache it is [B, 1, S, T] over all T tokens so far. Or what is added to scores, of the
                queries' type: 0 or -inf.

        Returns:
            [S, B, N * D], contiguous. With `kept` it is [T, 1, N * D] of [T, 1, N, D] and [T, 1, G, D]; the
            mask is then that of the padding, [B, 1, 1, S], and nothing else.
        """
        if self.kept is not None:
            if query.device.type == "cpu":
                return self._by_length(self.kept, (query, key, value))
            return self._padded(self.kept, (query, key, value), attention_mask)
        if self.cache is not None:
            key, value = self.cache.extend(key, value)
        return self._context(query, key, value, attention_mask)

    def _padded(self, kept: Kept, inputs: tuple[Tensor, ...], attention_mask: Tensor | None) -> Tensor:
        """`forward` with `kept` on whole rows, if it can be without a mask, as a GPU is faster then."""
        query, key, value = (kept.put(x) for x in inputs)
        return kept.take(self._context(query, key, value, None if kept.all else attention_mask))

    def _by_length(self, kept: Kept, inputs: tuple[Tensor, ...]) -> Tensor:
        """`forward` with `kept`, samples of one length at a time: nothing is padding then."""
        parts = zip(*(kept.split(x) for x in inputs), strict=True)
        return kept.join([self._context(query, key, value, None) for query, key, value in parts])

    def _context(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
        """`forward` on whole rows."""
        dropout = self.dropout if self.training else 0.0
        causal = self.causal and attention_mask is None
        if cpu_attention.suits(query, key, attention_mask, dropout):
            return cpu_attention.attend(query, key, value, causal)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [B, N, S, D]
        if dropout > 0.0 and self.own_stream:
            with get_cuda_rng_tracker().fork():
                context = _attend(q, k, v, attention_mask, causal, dropout)
        else:
            context = _attend(q, k, v, attention_mask, causal, dropout)
        seq_length, batch = query.shape[:2]
        return context.permute(2, 0, 1, 3).reshape(seq_length, batch, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    if q.device.type == "cpu" and is_slow(q.dtype):
        wide_mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
        return _attend(q.float(), k.float(), v.float(), wide_mask, causal, dropout).to(q.dtype)
    shared_by = q.shape[1] // k.shape[1]
    if shared_by > 1 and mask is not None and q.is_cuda:
        # No fused kernel of CUDA takes a mask and shared keys: torch would write out all scores.
        k, v = (x.repeat_interleave(shared_by, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )
