"""Supervised finetuning of a GPT: responses to prompts, the loss on the response only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from data_tools.errors import DataError
from finetune.batches import Examples
from finetune.rows import Record, read_records
from finetune.task_config import ResponseColumns, SftTask
from finetune.tasks.chat import RESPONSE_ROLE, messages_of, prompt_of, turns
from finetune.tasks.task import Answer, Encoder
from finetune.text import TextCodec, encode_prompts, encode_texts, end_of_text
from pretrain.config import ConfigError
from pretrain.models.gpt import GPT

PLACE = "{prompt}"


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt, as the template writes it, and what follows; None where that is to be written."""

    where: str
    prompt: str
    response: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Sft:
    """See `finetune.tasks.task.Task`."""

    section: SftTask
    columns: ResponseColumns

    def read(self, path: Path, labelled: bool = True) -> list[PromptRow]:
        """See Task."""
        if self.section.template.count(PLACE) != 1:
            raise ConfigError(f"task.template: must have {PLACE} once, has it not: {self.section.template!r}")
        return [row for record in read_records(path) for row in self._rows(record, labelled)]

    def infer_labels(self, path: Path, rows: Sequence[PromptRow]) -> tuple[str, ...]:
        """None: the model writes text."""
        return ()

    def prompt_ids(self, rows: Sequence[PromptRow], codec: TextCodec) -> list[npt.NDArray[np.int32]]:
        """What the model reads before each response."""
        prompts = [row.prompt for row in rows]
        return (encode_prompts if self.section.chat_template is None else encode_texts)(codec, prompts)

    def encode(self, rows: Sequence[PromptRow], encoder: Encoder) -> Examples:
        """Prompt, response and the end of text as one sequence; each token's label is the next one.

        Raises:
            DataError: A prompt that leaves no room for the response.
        """
        end = end_of_text(encoder.codec)
        prompts = self.prompt_ids(rows, encoder.codec)
        responses = encoder.codec.encode_batch([row.response or "" for row in rows])
        tokens, labels, masks, truncated = [], [], [], 0
        for row, prompt, response in zip(rows, prompts, responses, strict=True):
            whole = np.concatenate([prompt, response, [end]]).astype(np.int32)
            if len(prompt) > encoder.seq_length:
                raise DataError(
                    f"{row.where}: the prompt has {len(prompt)} tokens, batch.seq_length: "
                    f"{encoder.seq_length} leaves no room for the response; raise it or leave the row out"
                )
            truncated += len(whole) > encoder.seq_length + 1
            whole = whole[: encoder.seq_length + 1]
            tokens.append(whole[:-1])
            labels.append(whole[1:])
            masks.append((np.arange(len(whole) - 1) >= len(prompt) - 1).astype(np.float32))
        return Examples(
            sequences={"tokens": tokens, "labels": labels, "loss_mask": masks},
            fill={"tokens": end, "labels": end, "loss_mask": 0, "position_ids": 0, "document_ids": -1},
            targets={},
            rows=np.arange(len(rows)),
            padding_mask=False,  # what stands behind a text is not seen by it
            truncated=truncated,
        )

    def build(
        self, model: Any, labels: Sequence[str], train: Examples | None = None, **layout: Any
    ) -> nn.Module:
        """The pretraining model: there is no head."""
        return GPT(model, **layout)

    def answers(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        examples: Examples,
        rows: Sequence[PromptRow],
        labels: Sequence[str],
    ) -> list[Answer]:
        """None: responses are written token by token (`finetune.generate`), not read off one output."""
        return []

    def score(
        self, answers: Sequence[Answer], rows: Sequence[PromptRow], labels: Sequence[str], loss: float
    ) -> dict[str, float]:
        """Perplexity of the tokens of the responses."""
        return {"perplexity": math.exp(min(loss, 700.0))}

    def baseline(self, train: Sequence[PromptRow], rows: Sequence[PromptRow]) -> Mapping[str, float]:
        """None."""
        return {}

    def error(self, answer: Answer, row: PromptRow) -> float:
        """No answers, no errors."""
        return 0.0

    def truth(self, row: PromptRow) -> str | None:
        """See Task."""
        return row.response

    def _rows(self, record: Record, labelled: bool) -> list[PromptRow]:
        """One row, or one for each message of the assistant in a conversation."""
        columns, chat = self.columns, self.section.chat_template
        if chat is None or columns.messages is None:
            prompt = self.section.template.replace(PLACE, record.text(columns.prompt, "data.prompt"))
            response = record.text(columns.response, "data.response") if labelled else None
            return [PromptRow(record.where, prompt, response, record.fields)]
        messages = messages_of(record, columns.messages)
        if not labelled:
            while messages and messages[-1]["role"] == RESPONSE_ROLE:  # that is what is to be written
                messages = messages[:-1]
            return [PromptRow(record.where, prompt_of(chat, messages, record.where), None, record.fields)]
        pairs = turns(chat, messages, record.where)
        return [PromptRow(record.where, prompt, response, record.fields) for prompt, response in pairs]


def packed(examples: Examples, seq_length: int) -> Examples:
    """Several examples in one sequence, first fit, longest first; each attends to itself only.

    Args:
        examples: Of `Sft.encode`.
        seq_length: Longest sequence.

    Returns:
        Examples with `position_ids` and `document_ids`; `rows` are those of the longest example of each.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for number in np.argsort(-examples.lengths, kind="stable"):
        length = int(examples.lengths[number])
        fitting = next((b for b, left in enumerate(room) if left >= length), None)
        if fitting is None:
            bins.append([])
            room.append(seq_length)
            fitting = len(bins) - 1
        bins[fitting].append(int(number))
        room[fitting] -= length
    sequences: dict[str, Sequence[npt.NDArray[Any]]] = {
        name: [np.concatenate([values[n] for n in one]) for one in bins]
        for name, values in examples.sequences.items()
    }
    sizes = [[int(examples.lengths[n]) for n in one] for one in bins]
    sequences["position_ids"] = [np.concatenate([np.arange(size) for size in one]) for one in sizes]
    sequences["document_ids"] = [np.repeat(np.arange(len(one)), one) for one in sizes]
    return Examples(
        sequences=sequences,
        fill=examples.fill,
        targets={},
        rows=examples.rows[[one[0] for one in bins]],
        padding_mask=False,
        truncated=examples.truncated,
    )
