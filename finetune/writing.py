"""Continuing several texts at once with a GPT, with a cache of keys and values.

Prompts of different lengths are padded on the left; padding is never attended to, and positions count from
the first real token, so that a text does not depend on what else is in its batch.

Legend: B texts, P longest prompt, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from finetune.sampling import SamplingOptions, choose
from finetune.text import TextCodec, encode_prompts
from pretrain.config import ConfigError
from pretrain.models.cache import cached_attention

Told = Callable[[int, str], None]
"""Gets the number of a text and its next piece, as soon as it is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingOptions:
    """How texts are continued."""

    sampling: SamplingOptions = SamplingOptions()
    max_new_tokens: int = 50
    stop: tuple[str, ...] = ()
    """A text ends before the first of these that it contains; none is empty."""
    seed: int = 0
    """Of the choice of tokens; the n-th text of a batch has seed + n. Greedy needs none."""
    cut_at_context: bool = False
    """End a text where the model's context ends, instead of refusing a prompt without room for all tokens."""


class Writer:
    """A GPT with its tokenizer."""

    def __init__(self, model: Any, codec: TextCodec) -> None:
        """Wrap a whole model in evaluation mode."""
        self._model, self._codec = model, codec
        self._context = int(model.model_config.max_position_embeddings)
        self._vocab_size = int(model.model_config.vocab_size)
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def continue_texts(
        self, prompts: Sequence[str], options: WritingOptions, told: Told = lambda _number, _piece: None
    ) -> list[str]:
        """The continuation of each prompt, without the prompt.

        Args:
            prompts: An empty one starts a new document.
            options: How to continue.
            told: Hears of each piece while it is written.

        Raises:
            ConfigError: A prompt with its continuation does not fit into the model's context.
        """
        return self.continue_tokens([self.tokens_of(prompt) for prompt in prompts], options, told)

    @torch.no_grad()
    def continue_tokens(
        self,
        tokens: Sequence[list[int]],
        options: WritingOptions,
        told: Told = lambda _number, _piece: None,
    ) -> list[str]:
        """As `continue_texts`, for prompts of one token or more each."""
        texts = []
        for number, prompt in enumerate(tokens):
            own = replace(options, max_new_tokens=self.require_room(prompt, options))
            texts.append(_Text(self._codec, prompt, own, number, told))
        longest = max(map(len, tokens))
        pads = torch.tensor([longest - len(prompt) for prompt in tokens], device=self._device)
        rows = [[self._filler] * (longest - len(prompt)) + prompt for prompt in tokens]
        with cached_attention(self._model, longest + options.max_new_tokens):
            logits = self._step(torch.tensor(rows, device=self._device), pads, first=0)
            for count in range(options.max_new_tokens):
                chosen = [text.add(row) for text, row in zip(texts, logits, strict=True)]
                if all(text.finished for text in texts) or count + 1 == options.max_new_tokens:
                    break
                new = torch.tensor(chosen, device=self._device)[:, None]
                logits = self._step(new, pads, first=longest + count)
        return [text.end() for text in texts]

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its continuation."""
        return self._context

    def tokens_of(self, prompt: str) -> list[int]:
        """The prompt; for an empty one what a document begins with."""
        return [int(i) for i in encode_prompts(self._codec, [prompt])[0]]

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """[B, S, V] fp32 on the host, of [B, S] ids."""
        found: Tensor = self._model(tokens.to(self._device))["logits"]
        return found[..., : self._vocab_size].float().cpu()

    def require_room(self, prompt: list[int], options: WritingOptions, where: str = "") -> int:
        """Most new tokens behind a prompt.

        Args:
            prompt: Its tokens.
            options: How many are wanted: all of them, or with `cut_at_context` one at least.
            where: Names the prompt in the error.

        Raises:
            ConfigError: The model's context has no room for them.
        """
        room, wanted = self._context - len(prompt), 1 if options.cut_at_context else options.max_new_tokens
        if room < wanted:
            raise ConfigError(
                f"{where}the prompt has {len(prompt)} tokens; {wanted} new ones do not fit into the model's "
                f"context of {self._context}; shorten the prompt or write less (--max-new-tokens)"
            )
        return min(room, options.max_new_tokens)

    @property
    def _filler(self) -> int:
        return self._codec.eod_id or 0

    def _step(self, new: Tensor, pads: Tensor, first: int) -> Tensor:
        """[B, V] logits behind new tokens.

        Args:
            new: [B, S].
            pads: [B] padding in front of each text.
            first: Place of the first new token, padding counted.
        """
        places = torch.arange(first, first + new.shape[1], device=new.device)
        earlier = torch.arange(first + new.shape[1], device=new.device)
        causal = earlier[None, :] <= places[:, None]  # [S, T]
        real = earlier[None, None, :] >= pads[:, None, None]
        itself = earlier[None, :] == places[:, None]  # padding sees itself, for a softmax needs something
        mask = (causal & real | itself)[:, None]  # [B, 1, S, T]
        positions = (places[None, :] - pads[:, None]).clamp(0, self._context - 1)  # fillers may lie behind it
        logits: Tensor = self._model.next_logits(new, positions, mask)
        return logits[:, : self._vocab_size].float().cpu()  # the padded rows were never trained


class _Text:
    """One text while it grows."""

    def __init__(
        self, codec: TextCodec, prompt: list[int], options: WritingOptions, number: int, told: Told
    ) -> None:
        self.finished = False
        self._codec, self._options, self._number, self._tell = codec, options, number, told
        self._prompt, self._new, self._told = prompt, list[int](), 0
        self._generator = torch.Generator().manual_seed(options.seed + number)

    def add(self, logits: Tensor) -> int:
        """Choose the next token from [V] logits; the same filler for ever once the text has ended."""
        if self.finished:
            return self._prompt[0]
        sampling = self._options.sampling
        token = choose(logits, sampling, self._generator, self._prompt + self._new)
        if token == self._codec.eod_id:
            self.finished = True
            return token
        self._new.append(token)
        text = self._text()
        full = len(self._new) == self._options.max_new_tokens
        self.finished = full or self._cut(text) < len(text)
        self._tell_until(self._safe(text))
        return token

    def end(self) -> str:
        """The whole continuation; tells what was held back."""
        text = self._text()
        text = text[: self._cut(text)]
        self._tell_until(len(text))
        return text

    def _text(self) -> str:
        return self._codec.decode(self._new)

    def _cut(self, text: str) -> int:
        """Where the first stop string begins, or the length."""
        return min((at for stop in self._options.stop if (at := text.find(stop)) >= 0), default=len(text))

    def _safe(self, text: str) -> int:
        """How far the text will not change: before half a character or the beginning of a stop string."""
        safe = len(text.rstrip("\ufffd")) if not self.finished else self._cut(text)
        for stop in self._options.stop if not self.finished else ():
            overlaps = (n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
            safe = min(safe, len(text) - next(overlaps, 0))
        return safe

    def _tell_until(self, end: int) -> None:
        if end > self._told:
            self._tell(self._number, self._text()[self._told : end])
            self._told = end
