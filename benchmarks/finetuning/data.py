"""Text to pretrain on and three tasks with labels that authors gave, from the documentation on this machine.

- classification: which package a docstring of the standard library comes from (`headwater data python-docs`).
- tagging: which words of a manual page's paragraph are set in bold (LITERAL) or italics (ARGUMENT).
- question answering: questions about four options that follow each other in a manual page; the context is
  their names with the first sentences of their descriptions, the answer one of these names or sentences.

A fifth of the manual pages, by name, is left out of the text and makes up the validation data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from benchmarks.finetuning.man_pages import Page, Paragraph, read_pages
from data_tools.python_corpus import build_python_corpus

ENTRIES = 4
"""Options in the context of a question."""
LONGEST_SENTENCE = 14  # words
TAGS = {"R": None, "B": "LITERAL", "I": "ARGUMENT"}
ROWS = {"train": 2000, "validation": 500}


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
            chosen = sorted(rows, key=lambda row: _number(json.dumps(row)))[: ROWS[split]]
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
    """One question about each run of ENTRIES options: what one does, or which one does something."""
    for page in pages:
        entries = [entry for pair in pairwise(page.paragraphs) if (entry := _entry(*pair))]
        for first in range(0, len(entries) - ENTRIES + 1, ENTRIES):
            run = entries[first : first + ENTRIES]
            chosen = _number(page.name + run[0][0]) % (2 * ENTRIES)
            term, sentence = run[chosen // 2]
            if len({e[0] for e in run}) < ENTRIES or len({e[1] for e in run}) < ENTRIES:
                continue
            context, starts = "", []
            for entry in run:
                starts.append((len(context), len(context) + len(entry[0]) + 1))
                context += f"{entry[0]} {entry[1]} "
            asks_term = chosen % 2
            question = f"Which option: {sentence}" if asks_term else f"What does {term} do?"
            answer = {"text": term, "answer_start": starts[chosen // 2][0]}
            if not asks_term:
                answer = {"text": sentence, "answer_start": starts[chosen // 2][1]}
            yield {"question": question, "context": context.strip(), "answers": [answer]}


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
