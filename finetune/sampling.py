"""Choosing the next token from logits: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen. Greedy at temperature 0."""

    temperature: float = 0.0
    """Divides the logits; 0 takes the most probable token always."""
    top_k: int = 0
    """Only the k most probable tokens; 0 = all."""
    top_p: float = 1.0
    """Only the most probable tokens that reach this probability together (Holtzman et al., 2020)."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that occurred, multiplies negative ones (Keskar et al., 2019)."""


def choose(
    logits: Tensor, options: SamplingOptions, generator: torch.Generator, seen: Sequence[int] = ()
) -> int:
    """The next token from [V] logits, after the tokens in `seen`."""
    logits = penalized(logits.float(), seen, options.repetition_penalty)
    if options.temperature == 0.0:
        return int(logits.argmax())
    # The largest becomes 0 before the division, in fp64: no temperature that a float can have overflows.
    scaled = ((logits.double() - logits.max()) / options.temperature).float()
    kept = keep_top_p(keep_top_k(scaled, options.top_k), options.top_p)
    return int(torch.multinomial(kept.softmax(-1), 1, generator=generator))


def penalized(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """[V] logits with those of the tokens in `seen` made smaller."""
    if penalty == 1.0 or not seen:
        return logits
    places = torch.tensor(sorted(set(seen)), device=logits.device)
    values = logits[places]
    smaller = torch.where(values < 0, values * penalty, values / penalty)
    smaller = smaller.clamp(min=torch.finfo(smaller.dtype).min)  # never -inf, which all tokens may become
    return logits.scatter(0, places, smaller)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits with all but the k largest at -inf; k = 0 keeps all."""
    if k == 0 or k >= logits.numel():
        return logits
    kept = torch.full_like(logits, -torch.inf)
    largest = logits.topk(k)
    return kept.scatter(0, largest.indices, largest.values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits with all at -inf but the smallest set of most probable tokens that reaches probability p."""
    if p >= 1.0:
        return logits
    ordered = logits.sort(descending=True, stable=True)
    probabilities = ordered.values.softmax(-1)
    before = (
        probabilities.cumsum(-1) - probabilities
    )  # reached without this token; 0 for the first, which stays
    removed = torch.zeros_like(before, dtype=torch.bool).scatter(0, ordered.indices, before >= p)
    return logits.masked_fill(removed, -torch.inf)
