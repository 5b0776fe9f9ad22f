"""Our model against transformers' with the same weights: the proof that ends every conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ConversionError
from finetune.kinds import Architecture, build, task_kind
from finetune.single_rank import single_rank
from pretrain.checkpoint import load_parameters

LARGEST_DIFFERENCE = 1e-4
"""Of logits in fp32, relative to the largest of them where that exceeds 1; more is wrong, not rounded."""


def require_same(theirs: Any, of: Architecture, parameters: Mapping[str, Tensor], otherwise: str) -> str:
    """Build our model from whole parameters and compare its logits with those of a transformers model.

    Args:
        theirs: A model of transformers.
        of: What both are.
        parameters: Of our model.
        otherwise: What a difference means, for the error.

    Returns:
        What was found, as a sentence.

    Raises:
        ConversionError: They differ.
    """
    with single_rank() as topology:
        ours = build(of)
        load_parameters(ours, parameters, topology)
        difference = largest_difference(ours, theirs, of)
    found = (
        f"logits of {type(theirs).__name__} and of our model differ by at most {difference:.1e} "
        f"(allowed: {LARGEST_DIFFERENCE:.0e})"
    )
    if not difference <= LARGEST_DIFFERENCE:  # also catches NaN
        raise ConversionError(f"{found}; {otherwise}, please report it")
    return found


@torch.no_grad()
def largest_difference(ours: nn.Module, theirs: Any, of: Architecture) -> float:
    """Largest difference between the logits of two models on a fixed batch of random tokens.

    Args:
        ours: One of our models, whole.
        theirs: Its counterpart in transformers.
        of: What both are.
    """
    ours.eval()
    theirs.eval()
    vocab_size = of.model.vocab_size
    length = min(of.model.max_position_embeddings, 64)
    tokens = torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    if of.model.kind == "gpt":
        return _difference([ours(tokens)["logits"][..., :vocab_size]], [theirs(input_ids=tokens).logits])
    positions = torch.arange(length).expand_as(tokens)
    real = positions < torch.tensor([[length], [max(1, length * 2 // 3)]])  # the second row is padded
    types = (positions >= length // 2).long()
    kind = task_kind(of)
    if kind == "multiple_choice":  # the two rows are one with two choices
        tokens, types, real = tokens[None], types[None], real[None]
    mine = ours(tokens, types, real)
    out = theirs(input_ids=tokens, token_type_ids=types, attention_mask=real.long())
    if kind == "question_answering":
        ends = [out.start_logits[real], out.end_logits[real]]
        return _difference([mine["logits"][real][:, 0], mine["logits"][real][:, 1]], ends)
    if kind == "tagging":
        return _difference([mine["logits"][real]], [out.logits[real]])
    if kind is not None:
        return _difference([mine["logits"]], [out.logits])
    mlm = mine["logits"][..., :vocab_size][real]
    if "nsp_logits" not in mine:
        return _difference([mlm], [out.logits[real]])
    return _difference([mlm, mine["nsp_logits"]], [out.prediction_logits[real], out.seq_relationship_logits])


def _difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1.0))
        for a, b in zip(ours, theirs, strict=True)
    )
