"""Text to pretrain on and three tasks with labels that authors gave, from the documentation on this machine.

- classification: which package a docstring of the standard library comes from (`headwater data python-docs`).
- tagging: which words of a manual page's paragraph are set in bold (LITERAL) or italics (ARGUMENT).
- question answering: two questions about each four options that follow each other in a manual page; the
  context is their names with the first sentences of their descriptions, the answer one name or sentence.

A fifth of the manual pages, by name, is left out of the text and makes up the validation data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from benchmarks.finetuning.man_pages import Page, Paragraph, read_pages
from data_tools.python_corpus import build_python_corpus

ENTRIES = 4
"""Options in the context of a question."""
QUESTIONS = 2
"""Questions about the same options."""
LONGEST_SENTENCE = 14  # words
TAGS = {"R": None, "B": "LITERAL", "I": "ARGUMENT"}
ROWS = {
    "tagging": {"train": 2000, "validation": 500},
    "question_answering": {"train": 14_000, "validation": 1000},
}
"""At most so many. A network learns to look for an answer in the context from far more rows than to tag."""


def build(out: Path) -> dict[str, int]:
    """Write `corpus.jsonl` and a file of each task and split; returns what there is of each."""
    record, _ = build_python_corpus(out / "python")
    pages = read_pages()
    held_out = [page for page in pages if _number(page.name) % 5 == 0]
    seen = [page for page in pages if _number(page.name) % 5]
    documents = [json.loads(line) for line in (out / "python" / "corpus.jsonl").open(encoding="utf-8")]
    documents += [{"text": "\n\n".join(p.text for p in page.paragraphs), "id": page.name} for page in seen]
    counts = {"documents": _write(out / "corpus.jsonl", documents), "pages": len(pages)}
    for split, of in (("train", seen), ("validation", held_out)):
        for name, rows in (("tagging", tagged(of)), ("question_answering", questions(of))):
            chosen = sorted(rows, key=lambda row: _number(json.dumps(row)))[: ROWS[name][split]]
            counts[f"{name}/{split}"] = _write(out / f"{name}-{split}.jsonl", chosen)
    return counts | {
        f"classification/{split}": sum(n.values()) for split, n in record["classification"].items()
    }


def tagged(pages: Iterable[Page]) -> Iterator[dict[str, Any]]:
    """Paragraphs of 8 to 60 words, of which at least one is set apart."""
    for page in pages:
        for paragraph in page.paragraphs:
            words = paragraph.words()
            if paragraph.is_term or not 8 <= len(words) <= 60 or all(font == "R" for _, font in words):
                continue
            yield {"words": [word for word, _ in words], "tags": _bio([TAGS[font] for _, font in words])}


def _bio(kinds: Sequence[str | None]) -> list[str]:
    before = [None, *kinds[:-1]]
    return [
        "O" if kind is None else f"{'I' if kind == last else 'B'}-{kind}"
        for kind, last in zip(kinds, before, strict=True)
    ]


def questions(pages: Iterable[Page]) -> Iterator[dict[str, Any]]:
    """QUESTIONS about each run of ENTRIES options: what one does, or which one does something."""
    for page in pages:
        entries = [entry for pair in pairwise(page.paragraphs) if (entry := _entry(*pair))]
        for first in range(len(entries) - ENTRIES + 1):
            run = entries[first : first + ENTRIES]
            if any(len(set(column)) < ENTRIES for column in zip(*run, strict=True)):
                continue
            kinds = sorted(range(2 * ENTRIES), key=partial(_shuffled, page.name + run[0][0]))
            for number in kinds[:QUESTIONS]:
                yield _question(run, *divmod(number, 2))


def _shuffled(seed: str, number: int) -> int:
    return _number(f"{seed}{number}")


def _question(run: Sequence[tuple[str, str]], entry: int, asks_term: int) -> dict[str, Any]:
    """A row that asks for the name of an option, or for what it does."""
    term, sentence = run[entry]
    before = "".join(f"{name} {text} " for name, text in run[:entry])
    question = f"Which option: {sentence}" if asks_term else f"What does {term} do?"
    answer = {"text": term, "answer_start": len(before)}
    if not asks_term:
        answer = {"text": sentence, "answer_start": len(before) + len(term) + 1}
    context = " ".join(f"{name} {text}" for name, text in run)
    return {"question": question, "context": context, "answers": [answer]}


def _entry(term: Paragraph, text: Paragraph) -> tuple[str, str] | None:
    """An option's name and the first sentence about it, if they are short."""
    if not term.is_term or text.is_term or not term.text.startswith("-"):
        return None
    name = term.text.split()[0].strip(",")
    sentence = re.split(r"(?<=[.;:]) ", text.text)[0]
    long = len(sentence.split())
    return (name, sentence) if len(name) > 1 and 3 <= long <= LONGEST_SENTENCE else None


def _number(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)
