"""Token tagging: a tag for each word, such as the BIO tags of named entities or parts of speech.

The words of a sentence are joined by spaces and tokenised as one text, so that the model reads what it will
read in a transformers pipeline. The first token of a word carries its tag.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from data_tools.errors import DataError
from data_tools.tokenizer import Encoding
from finetune.batches import IGNORED_LABEL, Examples
from finetune.rows import FORMATS, Record, read_records, short
from finetune.task_config import TagColumns, TaggingTask
from finetune.tasks.classification import softmax
from finetune.tasks.conll import ENTITY_PREFIXES, OUTSIDE, read_conll
from finetune.tasks.models import BertForTokens
from finetune.tasks.pairs import joined, special_ids
from finetune.tasks.task import Answer, Encoder, class_weights
from finetune.tasks.text_rows import label_id, sorted_labels


@dataclass(frozen=True, slots=True)
class TaggedRow:
    """One sentence.

    Attributes:
        where: "file:line".
        words: At least one.
        tags: As many; None where they are to be found.
        fields: The row as it was read.
    """

    where: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Tagging:
    """See `finetune.tasks.task.Task`."""

    section: TaggingTask
    columns: TagColumns

    def read(self, path: Path, labelled: bool = True) -> list[TaggedRow]:
        """See Task."""
        if path.suffix.lower() in FORMATS:
            return [self._row(record, labelled) for record in read_records(path)]
        columns = self.columns.word_column, self.columns.tag_column if labelled else None
        return [
            TaggedRow(where, tuple(words), tuple(tags) if labelled else None, {self.columns.words: words})
            for where, words, tags in read_conll(path, *columns)
        ]

    def infer_labels(self, path: Path, rows: Sequence[TaggedRow]) -> tuple[str, ...]:
        """See Task."""
        found = {tag for row in rows for tag in row.tags or ()}
        if len(found) < 2:
            raise DataError(
                f"{path}: every word has the tag {next(iter(found))!r}; tagging needs two or more"
            )
        return sorted_labels(found)

    def encode(self, rows: Sequence[TaggedRow], encoder: Encoder) -> Examples:
        """See Task; `notes` are the positions of the words' first tokens, -1 for words that were cut off."""
        cls_id, sep_id, pad_id = special_ids(encoder.codec)
        ids = {name: i for i, name in enumerate(encoder.labels)}
        encodings = encoder.codec.encode_with_spans([" ".join(row.words) for row in rows])
        tokens, types, tags, notes = [], [], [], []
        for row, encoding in zip(rows, encodings, strict=True):
            positions = word_positions(row.words, encoding)
            read = positions < min(len(encoding.ids), encoder.seq_length - 2)
            positions = np.where(read, positions + 1, -1)  # behind [CLS]
            ids_of_row = joined(cls_id, sep_id, encoding.ids[: encoder.seq_length - 2], None)
            tokens.append(ids_of_row[0])
            types.append(ids_of_row[1])
            notes.append(positions)
            wanted = np.full(len(tokens[-1]), IGNORED_LABEL, np.int32)
            for position, tag in zip(positions, row.tags or (), strict=False):
                number = label_id(ids, tag, row.where)
                if position > 0:
                    wanted[position] = number
            tags.append(wanted)
        labelled = {"tags": tags} if rows and rows[0].tags is not None else {}
        return Examples(
            sequences={"tokens": tokens, "token_types": types, **labelled},
            fill={"tokens": pad_id, "token_types": 0, "tags": IGNORED_LABEL},
            targets={},
            rows=np.arange(len(rows)),
            notes=notes,
            truncated=sum(len(encoding.ids) > encoder.seq_length - 2 for encoding in encodings),
        )

    def build(
        self, model: Any, labels: Sequence[str], train: Examples | None = None, **layout: Any
    ) -> nn.Module:
        """See Task."""
        weights = None
        if train is not None and self.section.class_weights == "balanced":
            tags = np.concatenate(list(train.sequences["tags"]))
            weights = class_weights(np.bincount(tags[tags != IGNORED_LABEL], minlength=len(labels)))
        return BertForTokens(model, len(labels), self.section.dropout, weights, **layout)

    def answers(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        examples: Examples,
        rows: Sequence[TaggedRow],
        labels: Sequence[str],
    ) -> list[Answer]:
        """Tag and probability of each word; words that were cut off are outside, with probability null."""
        answers = []
        for logits, positions in zip(outputs, examples.notes, strict=True):
            found = softmax(logits[np.maximum(positions, 0)])
            read = positions > 0
            tags = [labels[i] if seen else OUTSIDE for i, seen in zip(found.argmax(-1), read, strict=True)]
            scores = [float(p) if seen else None for p, seen in zip(found.max(-1), read, strict=True)]
            answers.append({"tags": tags, "scores": scores})
        return answers

    def score(
        self, answers: Sequence[Answer], rows: Sequence[TaggedRow], labels: Sequence[str], loss: float
    ) -> dict[str, float]:
        """Entities by seqeval where tags have BIO prefixes, else tags by scikit-learn (macro averages)."""
        truth, found = [list(row.tags or ()) for row in rows], [list(answer["tags"]) for answer in answers]
        flat_truth, flat_found = [*chain(*truth)], [*chain(*found)]
        accuracy = {"accuracy": float(np.mean([a == b for a, b in zip(flat_truth, flat_found, strict=True)]))}
        names = ("precision", "recall", "f1")
        if _has_entities(labels):
            from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as of_entities

            values = of_entities(truth, found, average="micro", zero_division=0)
        else:
            from sklearn.metrics import precision_recall_fscore_support as of_tags

            values = of_tags(flat_truth, flat_found, labels=list(labels), average="macro", zero_division=0)
        return {name: float(value) for name, value in zip(names, values[:3], strict=True)} | accuracy

    def baseline(self, train: Sequence[TaggedRow], rows: Sequence[TaggedRow]) -> Mapping[str, float]:
        """Always the most frequent tag of the training data."""
        counts = Counter(tag for row in train for tag in row.tags or ())
        most_frequent = max(sorted(counts), key=lambda tag: counts[tag])
        tags = [tag for row in rows for tag in row.tags or ()]
        return {"majority_tag_accuracy": sum(tag == most_frequent for tag in tags) / len(tags)}

    def error(self, answer: Answer, row: TaggedRow) -> float:
        """Wrong tags."""
        return float(sum(a != b for a, b in zip(answer["tags"], row.tags or (), strict=True)))

    def truth(self, row: TaggedRow) -> list[str] | None:
        """See Task."""
        return None if row.tags is None else list(row.tags)

    def _row(self, record: Record, labelled: bool) -> TaggedRow:
        words = _strings(record, self.columns.words, "data.words")
        if not labelled:
            return TaggedRow(record.where, words, fields=record.fields)
        tags = tuple(tag.strip() for tag in _strings(record, self.columns.tags, "data.tags"))
        if len(tags) != len(words):
            raise DataError(f"{record.where}: {len(words)} words, {len(tags)} tags")
        return TaggedRow(record.where, words, tags, record.fields)


def word_positions(words: Sequence[str], encoding: Encoding) -> npt.NDArray[np.int64]:
    """[W] the first token of each word, of words joined by single spaces.

    A word of which the tokenizer keeps nothing has the length of the text: none.
    """
    lengths = np.array([len(word) for word in words])
    firsts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
    # The first token that ends behind the first character: pieces may begin with the space before a word.
    positions = np.searchsorted(encoding.spans[:, 1], firsts, side="right")
    starts = np.append(encoding.spans[:, 0], np.iinfo(np.int64).max)[positions]
    return np.where(starts < firsts + lengths, positions, len(encoding.ids))


def _strings(record: Record, column: str, key: str) -> tuple[str, ...]:
    value = record.get(column, key)
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise DataError(f"{record.where}: {column!r} must be a list of texts, not {short(value)}")
    return tuple(value)


def _has_entities(labels: Sequence[str]) -> bool:
    named = [label for label in labels if label != OUTSIDE]
    return bool(named) and all(label.startswith(ENTITY_PREFIXES) for label in named)
