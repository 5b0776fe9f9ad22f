"""Greedy text with the cache, without it, and by transformers: the same tokens, timed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.finetune_speed import RESULT
from finetune.gpt_links import gpt2_links
from finetune.hf_config import gpt2_config
from finetune.single_rank import LAYOUT, single_rank
from finetune.weights import to_hf
from finetune.writing import Writer, WritingOptions
from pretrain.config.model import GPTModelConfig
from pretrain.models.gpt import GPT

TEXTS, PROMPT, NEW, REPEATS = 4, 32, 96, 3
MODEL = GPTModelConfig(
    kind="gpt", vocab_size=8192, num_layers=6, hidden_size=384, ffn_hidden_size=1536, num_attention_heads=6,
    max_position_embeddings=256, hidden_dropout=0.0, attention_dropout=0.0, init_std=0.1,
)  # fmt: skip


class Numbers:
    """A tokenizer whose text is the numbers of its tokens; it never ends a text."""

    eod_id = None
    vocab_size = MODEL.vocab_size

    def decode(self, ids: Any) -> str:
        """Ids, separated by spaces."""
        return "".join(f"{i} " for i in ids)


def main() -> None:
    """Time each way in turn, compare what they write, print a table."""
    torch.manual_seed(0)
    with single_rank(), torch.no_grad():
        model = GPT(MODEL, **LAYOUT).eval()
        theirs = _theirs(model)
        prompts = torch.randint(MODEL.vocab_size, (TEXTS, PROMPT))
        writer = Writer(model, Numbers())  # type: ignore[arg-type]
        ways: dict[str, Callable[[], list[list[int]]]] = {
            "headwater, cache": lambda: _written(writer, prompts),
            "headwater, all of the text again for each token": lambda: _again(model, prompts),
            "transformers, cache": lambda: theirs.generate(
                prompts, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None
            )[:, PROMPT:].tolist(),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        texts = {}
        for _ in range(REPEATS):
            for name, way in ways.items():
                began = time.perf_counter()
                texts[name] = way()
                seconds[name].append(time.perf_counter() - began)
    first = texts["headwater, cache"]
    same = {name: found == first for name, found in texts.items()}
    if not all(same.values()):
        raise SystemExit(f"other tokens: {same}")
    lines = [f"{TEXTS} texts of {PROMPT} tokens, {NEW} new ones each; all write the same", ""]
    lines += ["| | tokens/s, median | seconds (least, most) |", "|---|---|---|"]
    for name, values in seconds.items():
        rate = TEXTS * NEW / median(values)
        lines.append(f"| {name} | {rate:,.0f} | {min(values):.2f}, {max(values):.2f} |")
    print(RESULT, "\n".join(lines))


def _written(writer: Writer, prompts: torch.Tensor) -> list[list[int]]:
    texts = writer.continue_tokens(prompts.tolist(), WritingOptions(max_new_tokens=NEW))
    return [[int(word) for word in text.split()] for text in texts]


def _again(model: GPT, prompts: torch.Tensor) -> list[list[int]]:
    tokens = prompts
    for _ in range(NEW):
        logits = model(tokens)["logits"][:, -1, : MODEL.vocab_size]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    return [row.tolist() for row in tokens[:, PROMPT:]]


def _theirs(model: GPT) -> Any:
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel(gpt2_config(MODEL)).eval()
    state = to_hf(gpt2_links(MODEL), dict(model.named_parameters()))
    theirs.load_state_dict(state, strict=False)
    theirs.tie_weights()
    return theirs


if __name__ == "__main__":
    json.loads(sys.argv[1])
    main()
