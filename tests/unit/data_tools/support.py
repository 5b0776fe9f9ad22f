"""Documents for the tests: prose shapes with everything that a splitter or a tokenizer may spoil."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = (
    "the shard stream reads a block of tokens and returns every document in order while other readers wait "
    "File Path Error value list index string number config option model layer weight gradient step batch"
).split()


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Distinct documents with sentences, paragraphs, indents, tabs and non-Latin text."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        lines = [f"Document {number}."]
        for _ in range(rng.randint(1, 12)):
            words = " ".join(rng.choices(WORDS, k=rng.randint(3, 14))).capitalize()
            lines.append(
                rng.choice(["", "    ", "\t"])
                + words
                + rng.choice([".", "!", "?", "...\n", " ünïcode 中文。"])
            )
        texts.append(rng.choice(["\n", " "]).join(lines))
    return texts


def write_jsonl(path: Path, texts: list[str]) -> Path:
    """One {"text"} object a line."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
