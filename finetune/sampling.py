"""Choosing the next token from logits: pure functions, and the loop that writes a text with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


NextToken = Callable[[Tensor], Tensor]
"""From all [S] tokens so far to the [V] logits after the last. Each call extends the tokens of the one
before, so that a model with a key-value cache fits as well."""


def continue_text(
    next_token: NextToken,
    prompt: list[int],
    max_new_tokens: int,
    options: SamplingOptions,
    generator: torch.Generator,
    stop_id: int | None,
) -> Iterator[int]:
    """Yield new tokens one by one, until `stop_id` (not yielded) or `max_new_tokens`.

    Args:
        next_token: The model.
        prompt: At least one token.
        max_new_tokens: At most so many.
        options: How to choose.
        generator: Source of randomness; not used when greedy.
        stop_id: Ends the text; None never does.
    """
    tokens = torch.tensor(prompt)
    for _ in range(max_new_tokens):
        chosen = choose(next_token(tokens), options, generator)
        if chosen == stop_id:
            return
        yield chosen
        tokens = torch.cat([tokens, torch.tensor([chosen])])


def choose(logits: Tensor, options: SamplingOptions, generator: torch.Generator) -> int:
    """The next token from [V] logits."""
    if options.temperature == 0.0:
        return int(logits.argmax())
    kept = keep_top_p(keep_top_k(logits.float() / options.temperature, options.top_k), options.top_p)
    return int(torch.multinomial(kept.softmax(-1), 1, generator=generator))


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
