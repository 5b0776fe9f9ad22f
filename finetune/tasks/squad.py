"""Questions about contexts: SQuAD's json, and its scores (Rajpurkar et al., 2016, 2018).

The json is {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]} with answers
[{"text", "answer_start"}]; tables have the columns of the `datasets` library's squad.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from finetune.rows import Record, read_records, short
from finetune.task_config import QuestionColumns


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """A passage of a context."""

    text: str
    start: int
    """Its first character."""


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question about a context.

    Attributes:
        where: "file:line", or the path inside a SQuAD json.
        answers: All that are right; none where the question has no answer; None where they are to be found.
        fields: The row as it was read.
    """

    where: str
    id: str
    question: str
    context: str
    answers: tuple[GoldAnswer, ...] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)


def read_questions(path: Path, columns: QuestionColumns, labelled: bool) -> list[QuestionRow]:
    """The questions of a file; .json is SQuAD's format, other endings are tables.

    Raises:
        DataError: A bad row, with the place.
    """
    records = _squad_records(path, columns) if path.suffix.lower() == ".json" else read_records(path)
    return [_row(record, columns, labelled) for record in records]


def _squad_records(path: Path, columns: QuestionColumns) -> Iterator[Record]:
    try:
        articles = json.loads(path.read_text(encoding="utf-8-sig"))["data"]
        for a, article in enumerate(articles):
            for p, paragraph in enumerate(article["paragraphs"]):
                for q, question in enumerate(paragraph["qas"]):
                    fields = {
                        columns.id: question.get("id"),
                        columns.question: question["question"],
                        columns.context: paragraph["context"],
                    }
                    if "answers" in question:
                        fields[columns.answers] = question["answers"]
                    yield Record(f"{path}: data[{a}].paragraphs[{p}].qas[{q}]", fields)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a SQuAD json ({error!r}); tables are called *.jsonl or *.parquet"
        ) from error


def _row(record: Record, columns: QuestionColumns, labelled: bool) -> QuestionRow:
    question = record.text(columns.question, "data.question")
    context = record.text(columns.context, "data.context")
    name = record.fields.get(columns.id)
    name = record.where if name is None else str(name)
    if not labelled:
        return QuestionRow(record.where, name, question, context, fields=record.fields)
    answers = tuple(_answers(record, columns.answers))
    for answer in answers:
        found = context[answer.start : answer.start + len(answer.text)]
        if found != answer.text:
            raise DataError(
                f"{record.where}: the answer {short(answer.text)} does not stand at character {answer.start} "
                f"of the context; there is {short(found)}"
            )
    return QuestionRow(record.where, name, question, context, answers, record.fields)


def _answers(record: Record, column: str) -> Iterator[GoldAnswer]:
    """Both ways to write answers: a list of {"text", "answer_start"}, and the two lists."""
    value = record.get(column, "data.answers")
    try:
        if isinstance(value, dict):
            value = [
                {"text": text, "answer_start": start}
                for text, start in zip(value["text"], value["answer_start"], strict=True)
            ]
        for answer in value:
            text, start = answer["text"], answer["answer_start"]
            if not isinstance(text, str) or not text or not isinstance(start, int) or start < 0:
                raise ValueError("text or answer_start")
            yield GoldAnswer(text, start)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{record.where}: {column!r} must be a list of {{text, answer_start}}, or {{text: [...], "
            f"answer_start: [...]}}, not {short(value)} ({error})"
        ) from error


def normalized(text: str) -> str:
    """As the official SQuAD evaluation: lower case, without punctuation, articles and extra white space."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str) -> float:
    """1 where both are the same after normalisation."""
    return float(normalized(answer) == normalized(gold))


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the words of both; 1 where both are empty."""
    found, wanted = normalized(answer).split(), normalized(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    same = sum((Counter(found) & Counter(wanted)).values())
    return 2.0 * same / (len(found) + len(wanted))


def best_over_golds(measure: Callable[[str, str], float], answer: str, golds: Sequence[GoldAnswer]) -> float:
    """The best over all right answers; a question without answer wants the empty text."""
    texts = [gold.text for gold in golds if normalized(gold.text)] or [""]
    return max(measure(answer, text) for text in texts)


def as_json(answers: Sequence[GoldAnswer] | None) -> list[dict[str, Any]] | None:
    """The answers as SQuAD writes them."""
    return None if answers is None else [{"text": a.text, "answer_start": a.start} for a in answers]
