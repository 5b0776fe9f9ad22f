"""Output projection and cross entropy in one, over a vocabulary that is split over tensor-parallel ranks.

The logits of a large vocabulary are the largest activation of a training step, and kept in fp32 for the loss
they are larger still. Here they exist for a chunk of positions at a time: the forward pass turns a chunk's
logits into their gradient in place, multiplies that into the gradients of hidden states and weights, and
forgets it (as in Liger Kernel, Hsu et al., 2024). The backward pass only scales the gradients, so nothing is
computed twice, and the weight may be gone by then, as under ZeRO-3. This works because the loss is a sum with
known weights per position, whose only unknown is one factor.

Legend: N positions, H hidden_size, V padded vocabulary, TP tensor-parallel size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from torch import Tensor
from torch.profiler import record_function

from pretrain.config.derive import LOGITS_AT_A_TIME
from pretrain.parallel.blocks import row_blocks, row_slices

CHUNK_ELEMENTS = LOGITS_AT_A_TIME
_CPU_BLOCK_ELEMENTS = 2**20
"""Logits in fp32 at a time: 4 MB, which stay in the cache; 4 times faster than a pass over all of them."""
_GPU_BLOCK_ELEMENTS = 2**25


@dataclass(frozen=True, slots=True)
class VocabularySlice:
    """Which pieces of the vocabulary this rank's rows of the output weight are."""

    first: int = 0
    """The piece of row 0."""
    real: int = 0
    """Rows that stand for pieces; those behind are padding and take no probability."""
    group: dist.ProcessGroup | None = None
    """Ranks that hold the other slices; None when there are none."""


def whole_logits(logits: Tensor, vocab_size: int) -> Tensor:
    """[..., vocab_size] on every tensor-parallel rank, from [..., V / TP] of each."""
    gathered: Tensor = gather_from_tensor_model_parallel_region(logits)
    return gathered[..., :vocab_size]


class VocabularyLinear(ColumnParallelLinear):  # type: ignore[misc]
    """The output projection: logits, or at once their loss."""

    def loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        vocab_size: int,
        *,
        weight: Tensor | None = None,
        loss_weights: Tensor | None = None,
    ) -> Tensor:
        """Summed cross entropy over the real vocabulary; to be called through the module, see `forward`.

        Args:
            hidden: [..., H]; under sequence parallelism this rank's part of the first dimension.
            labels: [...] token ids of the whole sequence.
            vocab_size: Pieces of the tokenizer; the loss does not depend on how far the embedding is padded.
            weight: [V / TP, H], the tied embedding; None takes the layer's own.
            loss_weights: [...] weight of each position; None counts all. Positions of weight 0 are not
                computed.

        Returns:
            fp32 scalar, the same on every tensor-parallel rank.
        """
        if self.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=True, group=self.tp_group
            )
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=self.tp_group)
        weight = self.weight if weight is None else weight
        rows, rank, size = weight.shape[0], self.tp_group.rank(), self.tp_group.size()
        part = VocabularySlice(
            first=rank * rows,
            real=max(0, min(rows, vocab_size - rank * rows)),
            group=self.tp_group if size > 1 else None,
        )
        return vocabulary_loss(hidden, (weight, self.bias), labels, loss_weights, part)

    def forward(self, input_: Tensor, *arguments: Any, labels: Tensor | None = None, **named: Any) -> Any:
        """(logits [..., V / TP], None) as ColumnParallelLinear gives them, or with labels the summed loss.

        One entry for both, because ZeRO-3 gathers a module's parameters when the module is called.
        """
        if labels is None:
            return super().forward(input_, *arguments, **named)
        with record_function("phase: loss"):
            return self.loss(input_, labels, *arguments, **named)


def vocabulary_loss(
    hidden: Tensor,
    projection: tuple[Tensor, Tensor | None],
    labels: Tensor,
    loss_weights: Tensor | None,
    part: VocabularySlice,
) -> Tensor:
    """Sum over positions of weight x cross entropy.

    Args:
        hidden: [..., H].
        projection: weight [V / TP, H] and bias [V / TP] or None.
        labels: [...] token ids.
        loss_weights: [...] or None for 1 everywhere.
        part: This rank's slice of the vocabulary.

    Returns:
        fp32 scalar. The gradient that reaches `hidden` is this rank's share: the sum over ranks is whole.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    if loss_weights is None:
        loss_weights = torch.ones(labels.shape, device=labels.device)
    else:
        loss_weights = loss_weights.reshape(-1).float()
        counted = loss_weights.nonzero().squeeze(-1)
        if len(counted) < len(labels):
            hidden, labels = hidden.index_select(0, counted), labels.index_select(0, counted)
            loss_weights = loss_weights.index_select(0, counted)
    weight, bias = projection
    with_gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss: Tensor = _ProjectedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, (labels, loss_weights), (part, with_gradients)
    )
    return loss


class _ProjectedLoss(torch.autograd.Function):
    """`vocabulary_loss` of [N, H] hidden states, with the gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: tuple[Tensor, Tensor],
        manner: tuple[VocabularySlice, bool],
    ) -> Tensor:
        (labels, loss_weights), (part, with_gradients) = targets, manner
        loss = torch.zeros((), device=hidden.device)
        gradients = _Gradients(hidden, weight, bias) if with_gradients else None
        for rows in row_slices(len(hidden), weight.shape[0], CHUNK_ELEMENTS):
            logits = F.linear(hidden[rows], weight, bias)
            index, mine = _local(labels[rows], part, logits.shape[1])
            chosen = logits.gather(1, index).squeeze(1).float() * mine  # 0 where another rank has it
            normalizers = None
            if part.group is not None or gradients is None:
                normalizers, chosen = _statistics(logits, chosen, part)
            if gradients is not None:
                here = index, mine, loss_weights[rows]
                normalizers = _logits_to_gradient(logits, here, part.real, normalizers)
                gradients.add(rows, logits, hidden[rows], weight)
            assert normalizers is not None
            loss += torch.dot(normalizers - chosen, loss_weights[rows])
        if gradients:
            made = gradients.weight if len(hidden) else torch.zeros_like(weight)
            ctx.save_for_backward(gradients.hidden, made, gradients.bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor | None, ...]:
        made = ctx.saved_tensors
        dtype = made[0].dtype  # that of hidden states and parameters
        scaled = [None if gradient is None else _scaled(gradient, factors[0], dtype) for gradient in made]
        return (*scaled, None, None)


class _Gradients:
    """Gradients of the loss with respect to hidden states, weight and bias, added up chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.hidden = torch.empty_like(hidden)
        self.weight = weight.new_empty(0)
        self.bias = None if bias is None else torch.zeros(bias.shape, device=bias.device)
        self._chunks = 0

    def add(self, rows: slice, logits_gradient: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Add the share of one chunk of positions."""
        self.hidden[rows] = logits_gradient @ weight
        if self.bias is not None:
            self.bias += logits_gradient.sum(0, dtype=torch.float32)
        if self._chunks == 0:
            self.weight = logits_gradient.t() @ hidden
        elif self.weight.dtype == weight.dtype == torch.float32:
            self.weight.addmm_(logits_gradient.t(), hidden)
        else:  # several roundings of a growing sum would lose its small parts
            self.weight = self.weight.float().add_(logits_gradient.t() @ hidden)
        self._chunks += 1


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 factor x gradient, in place where the type stays."""
    if gradient.dtype == dtype and factor.device.type == "cpu":
        return gradient.mul_(factor)  # in fp32, as the factor has no dimension; CUDA would round it first
    scaled = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    flat, source = scaled.view(-1, 1), gradient.view(-1, 1)
    for rows in row_slices(len(source), 1, _block_elements(source)):
        flat[rows] = source[rows].float() * factor
    return scaled


def _statistics(logits: Tensor, chosen: Tensor, part: VocabularySlice) -> tuple[Tensor, Tensor]:
    """[N] fp32 each: log-sum-exp over the whole vocabulary, and the label's logit; equal on all ranks."""
    normalizers = torch.empty(len(logits), device=logits.device)
    for rows, block in _blocks_in_fp32(logits):
        normalizers[rows] = torch.logsumexp(block[:, : part.real], dim=-1)
    if part.group is None:
        return normalizers, chosen
    local = torch.stack([normalizers, chosen])
    everyone = [torch.empty_like(local) for _ in range(part.group.size())]
    dist.all_gather(everyone, local, group=part.group)
    whole = torch.stack(everyone)  # [TP, 2, N]
    return torch.logsumexp(whole[:, 0], dim=0), whole[:, 1].sum(0)


def _logits_to_gradient(
    logits: Tensor, targets: tuple[Tensor, Tensor, Tensor], real: int, normalizers: Tensor | None
) -> Tensor:
    """Overwrite logits by weight x (probability - one at the label), and return the normalizers.

    They come from `_statistics`, or are None where this rank has the whole vocabulary: then they are found on
    the way, which spares a pass.
    """
    index, mine, loss_weights = targets
    found = torch.empty(len(logits), device=logits.device) if normalizers is None else normalizers
    for rows, block in _blocks_in_fp32(logits):
        block[:, real:] = -torch.inf
        if normalizers is None:
            largest = block.amax(1)
            torch.softmax(block, dim=1, out=block)
            found[rows] = largest - block.amax(1).log()
        else:
            block.sub_(normalizers[rows, None]).exp_()
        block.scatter_add_(1, index[rows], -mine[rows, None].float())
        logits[rows] = block.mul_(loss_weights[rows, None])
    return found


def _local(labels: Tensor, part: VocabularySlice, columns: int) -> tuple[Tensor, Tensor]:
    """[N, 1] column of each label and [N] whether it is this rank's at all; the column of others is any."""
    index = labels - part.first
    mine = (index >= 0) & (index < part.real)
    return index.clamp(0, columns - 1)[:, None], mine


def _blocks_in_fp32(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after others, and a copy of them that the next one overwrites: nothing is allocated anew."""
    rows, columns = logits.shape
    elements, device = _block_elements(logits), logits.device
    for here, (block,) in row_blocks(rows, columns, copies=1, elements=elements, device=device):
        yield here, block.copy_(logits[here])


def _block_elements(tensor: Tensor) -> int:
    return _CPU_BLOCK_ELEMENTS if tensor.device.type == "cpu" else _GPU_BLOCK_ELEMENTS
