"""Extractive question answering: windows over long contexts, answers as spans of the context.

[CLS] question [SEP] window of the context [SEP]. A window without the answer learns to point to [CLS], whose
lowest score of all windows is that of "no answer" (Devlin et al., 2019, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from data_tools.errors import DataError
from data_tools.tokenizer import Encoding
from finetune.batches import Examples
from finetune.task_config import QuestionAnsweringTask, QuestionColumns
from finetune.tasks.classification import softmax
from finetune.tasks.models import BertForSpans
from finetune.tasks.pairs import joined, special_ids
from finetune.tasks.squad import (
    GoldAnswer,
    QuestionRow,
    as_json,
    best_over_golds,
    exact_match,
    f1,
    read_questions,
)
from finetune.tasks.task import Answer, Encoder
from pretrain.config import ConfigError

NO_ANSWER = (0, 0)
"""Both ends point to [CLS]."""


class Candidate(NamedTuple):
    """A possible answer: its score in logits, and its characters in the context."""

    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class QuestionAnswering:
    """See `finetune.tasks.task.Task`."""

    section: QuestionAnsweringTask
    columns: QuestionColumns

    def read(self, path: Path, labelled: bool = True) -> list[QuestionRow]:
        """See Task."""
        rows = read_questions(path, self.columns, labelled)
        for row in rows:
            if labelled and not row.answers and not self.section.no_answer:
                raise DataError(
                    f"{row.where}: the question has no answer; set task.no_answer: true for data like "
                    "SQuAD 2.0"
                )
        return rows

    def infer_labels(self, path: Path, rows: Sequence[QuestionRow]) -> tuple[str, ...]:
        """None: the outputs are the two ends of an answer."""
        return ()

    def encode(self, rows: Sequence[QuestionRow], encoder: Encoder) -> Examples:
        """See Task; `notes` are the characters of each token, -1 outside of the context."""
        cls_id, sep_id, pad_id = special_ids(encoder.codec)
        questions = encoder.codec.encode_batch([row.question for row in rows])
        contexts = encoder.codec.encode_with_spans([row.context for row in rows])
        tokens, types, targets, numbers, notes = [], [], [], [], []
        truncated = 0
        for number, (row, question, context) in enumerate(zip(rows, questions, contexts, strict=True)):
            question = question[: self.section.max_question_tokens]
            windows = self._windows(row, len(question), len(context.ids), encoder.seq_length)
            truncated += len(windows) > 1
            for first, last in windows:
                window = joined(cls_id, sep_id, question, context.ids[first:last])
                tokens.append(window[0])
                types.append(window[1])
                at = len(question) + 2
                spans = np.full((len(window[0]), 2), -1, np.int64)
                spans[at : at + last - first] = context.spans[first:last]
                notes.append(spans)
                numbers.append(number)
                targets.append(_target(row, context, first, last, at))
        labelled = bool(rows) and rows[0].answers is not None
        return Examples(
            sequences={"tokens": tokens, "token_types": types},
            fill={"tokens": pad_id, "token_types": 0},
            targets={"labels": np.array(targets, np.int64)} if labelled else {},
            rows=np.array(numbers, np.int64),
            notes=notes,
            truncated=truncated,
        )

    def build(
        self, model: Any, labels: Sequence[str], train: Examples | None = None, **layout: Any
    ) -> nn.Module:
        """See Task."""
        return BertForSpans(model, **layout)

    def answers(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        examples: Examples,
        rows: Sequence[QuestionRow],
        labels: Sequence[str],
    ) -> list[Answer]:
        """The best passage of each context with its probability among the n best; "" for no answer."""
        found: list[list[Candidate]] = [[] for _ in rows]
        none = np.full(len(rows), np.inf)
        for row, logits, spans in zip(examples.rows, outputs, examples.notes, strict=True):
            none[row] = min(none[row], float(logits[0].sum()))
            found[row] += candidates(logits, spans, self.section.n_best, self.section.max_answer_tokens)
        return [self._answer(row, found[n], float(none[n])) for n, row in enumerate(rows)]

    def score(
        self, answers: Sequence[Answer], rows: Sequence[QuestionRow], labels: Sequence[str], loss: float
    ) -> dict[str, float]:
        """As the official evaluation, as fractions of 1."""
        return {
            name: float(
                np.mean(
                    [
                        best_over_golds(of, a["answer"], r.answers or ())
                        for a, r in zip(answers, rows, strict=True)
                    ]
                )
            )
            for name, of in (("exact_match", exact_match), ("f1", f1))
        }

    def baseline(self, train: Sequence[QuestionRow], rows: Sequence[QuestionRow]) -> Mapping[str, float]:
        """Never an answer."""
        return {"no_answer_exact_match": sum(not row.answers for row in rows) / len(rows)}

    def error(self, answer: Answer, row: QuestionRow) -> float:
        """1 - F1."""
        return 1.0 - best_over_golds(f1, answer["answer"], row.answers or ())

    def truth(self, row: QuestionRow) -> Any:
        """See Task."""
        return as_json(row.answers)

    def _windows(
        self, row: QuestionRow, question: int, context: int, seq_length: int
    ) -> list[tuple[int, int]]:
        """First and last + 1 token of the context in each window.

        Raises:
            ConfigError: The context needs several and the question is too long for that, which settings of
                earlier versions allow.
        """
        room, stride = seq_length - question - 3, self.section.stride
        if context <= room:
            return [(0, context)]
        if room <= stride:
            raise ConfigError(
                f"{row.where}: the question has {question} tokens, batch.seq_length: {seq_length} has room "
                f"for {max(0, room)} of the {context} of its context beside them, and windows with "
                f"task.stride: {stride} cannot move on; shorten one of the two, or train with a lower "
                "task.stride or task.max_question_tokens"
            )
        firsts = range(0, context - stride, room - stride)
        return [(first, min(first + room, context)) for first in firsts]

    def _answer(self, row: QuestionRow, found: list[Candidate], none: float) -> Answer:
        trimmed = {_without_spaces(row.context, candidate) for candidate in found}
        best = sorted((c for c in trimmed if c.start < c.end), key=lambda c: (-c.score, c.start, c.end))
        texts: dict[str, Candidate] = {}
        for candidate in best:
            texts.setdefault(row.context[candidate.start : candidate.end], candidate)
        listed = list(texts.items())[: self.section.n_best]
        if self.section.no_answer or not listed:
            listed.append(("", Candidate(none, 0, 0)))
            listed.sort(key=lambda item: -item[1].score)
        probabilities = softmax(np.array([candidate.score for _, candidate in listed]))
        n_best = [
            {"answer": text, "score": float(p), "start": c.start, "end": c.end}
            for (text, c), p in zip(listed, probabilities, strict=True)
        ]
        return {**self._chosen(n_best, best, none), "n_best": n_best}

    def _chosen(self, n_best: list[Answer], best: list[Candidate], none: float) -> Answer:
        if self.section.no_answer and best:
            wants_none = none - best[0].score > self.section.no_answer_threshold
            return next(answer for answer in n_best if (answer["answer"] == "") == wants_none)
        return n_best[0]


def candidates(
    logits: npt.NDArray[Any], spans: npt.NDArray[np.int64], n_best: int, max_answer_tokens: int
) -> list[Candidate]:
    """The best spans of one window, from the `n_best` best starts and ends.

    Args:
        logits: [S, 2] of start and end.
        spans: [S, 2] characters of each token, -1 outside of the context.
        n_best: Starts, ends and spans to keep.
        max_answer_tokens: Longest span.
    """
    inside = np.flatnonzero(spans[:, 0] >= 0)
    starts, ends = (inside[np.argsort(-logits[inside, end], kind="stable")][:n_best] for end in (0, 1))
    lengths = ends[None, :] - starts[:, None] + 1
    fits = (lengths >= 1) & (lengths <= max_answer_tokens)
    found = [
        Candidate(float(logits[s, 0] + logits[e, 1]), int(spans[s, 0]), int(spans[e, 1]))
        for s, e in ((starts[i], ends[j]) for i, j in np.argwhere(fits))
    ]
    return sorted(found, reverse=True)[:n_best]


def _without_spaces(context: str, candidate: Candidate) -> Candidate:
    text = context[candidate.start : candidate.end]
    start = candidate.start + len(text) - len(text.lstrip())
    return Candidate(candidate.score, start, max(start, candidate.start + len(text.rstrip())))


def _target(row: QuestionRow, context: Encoding, first: int, last: int, at: int) -> tuple[int, int]:
    """First and last token, in the window, of the first right answer; [CLS] where it is not whole in it."""
    if not row.answers:
        return NO_ANSWER
    begin, end = answer_tokens(row.answers[0], context)
    if first <= begin and end < last:
        return begin - first + at, end - first + at
    return NO_ANSWER


def answer_tokens(answer: GoldAnswer, context: Encoding) -> tuple[int, int]:
    """First and last token that share a character with an answer.

    Pieces may begin with the space before a word; `_without_spaces` takes it off an answer again.
    """
    begin = int(np.searchsorted(context.spans[:, 1], answer.start, side="right"))
    end = int(np.searchsorted(context.spans[:, 0], answer.start + len(answer.text), side="left")) - 1
    return begin, max(begin, end)
