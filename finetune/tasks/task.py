"""What a task is: from rows of a file to examples, a model with a head, and from its outputs to answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
from torch import nn

from finetune.batches import Examples
from finetune.task_config import TaskSection
from finetune.text import TextCodec
from pretrain.config.model import BertModelConfig, GPTModelConfig

Answer = dict[str, Any]
"""What `headwater predict` adds to a row: JSON-able."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """What turns text into examples.

    Attributes:
        codec: The checkpoint's tokenizer.
        seq_length: Longest example, in tokens.
        labels: Names of the labels, in the order of their ids.
    """

    codec: TextCodec
    seq_length: int
    labels: tuple[str, ...] = ()


class Task(Protocol):
    """A kind of finetuning. Rows are the task's own; each has `where`, its place in the file."""

    section: TaskSection

    def read(self, path: Path, labelled: bool = True) -> list[Any]:
        """The rows of a file; with `labelled` each must have what the model has to find.

        Raises:
            DataError: A bad row, with file and line.
        """

    def infer_labels(self, path: Path, rows: Sequence[Any]) -> tuple[str, ...]:
        """The labels of the training data; () for a task without.

        Raises:
            DataError: Too few to learn from.
        """

    def encode(self, rows: Sequence[Any], encoder: Encoder) -> Examples:
        """Tokenise; targets are there if the rows have labels.

        Raises:
            DataError: A label that is not among `encoder.labels`, with file and line.
        """

    def build(
        self,
        model: BertModelConfig | GPTModelConfig,
        labels: Sequence[str],
        train: Examples | None = None,
        **layout: Any,
    ) -> nn.Module:
        """The model with a fresh head.

        Args:
            model: Architecture of the pretrained part.
            labels: Their number is that of the outputs.
            train: The training data, for class weights; None where nothing is trained.
            layout: As for the pretraining models.
        """

    def answers(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        examples: Examples,
        rows: Sequence[Any],
        labels: Sequence[str],
    ) -> list[Answer]:
        """One answer per row, from the logits of each example (without padding)."""

    def score(
        self, answers: Sequence[Answer], rows: Sequence[Any], labels: Sequence[str], loss: float
    ) -> dict[str, float]:
        """The scores that `section.scores` names."""

    def baseline(self, train: Sequence[Any], rows: Sequence[Any]) -> Mapping[str, float]:
        """What an answer that never looks at the row would score."""

    def error(self, answer: Answer, row: Any) -> float:
        """0 for a right answer; the larger, the earlier it stands among the error samples."""

    def truth(self, row: Any) -> Any:
        """What a row says that the answer should be, JSON-able."""


def class_weights(counts: npt.NDArray[Any]) -> list[float]:
    """Balanced weights: all / (labels * those with the label), as scikit-learn's "balanced"; 0 for none."""
    total, used = counts.sum(), (counts > 0).sum()
    return [float(total / (used * count)) if count else 0.0 for count in counts]
