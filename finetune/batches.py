"""Tokenised examples as batches: a shuffled endless stream for training, a fixed list for evaluation.

The order is a pure function of (seed, epoch): the permutation of `pretrain.data.order`. State is a count of
samples handed to the trainer, so a run goes on at any data-parallel size. The last samples of an epoch share
a batch with the first of the next.

Legend: B micro_batch_size, S longest sequence of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from finetune.classification import IGNORED_LABEL
from finetune.text import TextCodec
from pretrain.config import ConfigError
from pretrain.data.order import sample_at
from pretrain.data.philox import I64, derive_key
from pretrain.data.steps import RankPlan

MicroBatch = dict[str, npt.NDArray[Any]]

STATE_FORMAT = 1
"""Raised whenever the same state would mean other samples."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Tokenised, labelled texts.

    Attributes:
        tokens: [CLS] text [SEP] of each example, int32.
        labels: [n] int64.
        pad_id: Fills shorter sequences of a batch.
        truncated: Examples whose text was too long.
    """

    tokens: tuple[npt.NDArray[np.int32], ...]
    labels: I64
    pad_id: int
    truncated: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """Hash of tokens and labels: what a saved cursor belongs to."""
        digest = xxhash.xxh3_128(self.labels.tobytes())
        for tokens in self.tokens:
            digest.update(np.int64(len(tokens)).tobytes())
            digest.update(np.ascontiguousarray(tokens).tobytes())
        return digest.hexdigest()

    def micro_batch(self, rows: Sequence[int] | I64) -> MicroBatch:
        """Stack examples, padded to the longest.

        Returns:
            tokens and token_types [B, S] int64, padding_mask [B, S] bool (True = real), labels [B] int64.
        """
        lengths = np.array([len(self.tokens[row]) for row in rows])
        real = np.arange(lengths.max()) < lengths[:, None]
        tokens = np.full(real.shape, self.pad_id, dtype=np.int64)
        tokens[real] = np.concatenate([self.tokens[row] for row in rows])
        return {
            "tokens": tokens,
            "token_types": np.zeros_like(tokens),
            "padding_mask": real,
            "labels": self.labels[np.asarray(rows)],
        }


def encode_examples(
    codec: TextCodec, texts: Sequence[str], labels: Sequence[int], seq_length: int
) -> Examples:
    """Tokenise texts as [CLS] text [SEP], cut to seq_length tokens.

    Raises:
        ConfigError: A tokenizer without [CLS] or [SEP].
    """
    cls_id, sep_id, pad_id = codec.cls_id, codec.sep_id, codec.pad_id
    if cls_id is None or sep_id is None or pad_id is None:
        raise ConfigError(
            "pretrained: the tokenizer of this checkpoint lacks [CLS], [SEP] or [PAD]; it is no BERT's"
        )
    encoded = codec.encode_batch(texts)
    room = seq_length - 2
    first, last = np.array([cls_id], np.int32), np.array([sep_id], np.int32)
    tokens = tuple(np.concatenate([first, ids[:room], last]) for ids in encoded)
    truncated = sum(len(ids) > room for ids in encoded)
    return Examples(tokens, np.asarray(labels, dtype=np.int64), pad_id, truncated)


class ExampleStream:
    """Iterator over one rank's optimizer steps, with the cursor protocol of `pretrain.loop.Stream`.

    Attributes:
        consumed_samples: Samples of all ranks in the steps handed out.
    """

    def __init__(self, examples: Examples, plan: RankPlan, seed: int) -> None:
        self.consumed_samples = 0
        self._examples, self._plan = examples, plan
        self._key = derive_key(seed, "finetune")
        self._mean_tokens = sum(map(len, examples.tokens)) / len(examples)
        self._identity = {
            "format": STATE_FORMAT,
            "seed": seed,
            "examples": len(examples),
            "fingerprint": examples.fingerprint,
        }

    def __iter__(self) -> ExampleStream:
        return self

    def __next__(self) -> list[MicroBatch]:
        rows = self._rows(self._plan.numbers(self.consumed_samples, 1))
        self.consumed_samples += self._plan.global_batch_size
        size = self._plan.micro_batch_size
        return [self._examples.micro_batch(rows[at : at + size]) for at in range(0, len(rows), size)]

    @property
    def consumed_tokens(self) -> int:
        """Tokens handed out so far, padding not counted."""
        return int(self.consumed_samples * self._mean_tokens)

    def epochs(self) -> dict[str, float]:
        """Passes over the training data so far."""
        return {"train": self.consumed_samples / len(self._examples)}

    def state_dict(self) -> dict[str, Any]:
        """Position after the steps handed out so far: small, JSON-able, the same on every rank."""
        return {**self._identity, "consumed_samples": self.consumed_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after a saved position, at any data-parallel, micro-batch or global batch size.

        Raises:
            DataError: The state belongs to other data or another seed.
        """
        for name, ours in self._identity.items():
            if state.get(name) != ours:
                raise DataError(
                    f"cannot continue this run: {name} of the training data is {ours!r} now, "
                    f"{state.get(name)!r} in the checkpoint; restore data.train or choose another run_dir"
                )
        self.consumed_samples = int(state["consumed_samples"])

    def _rows(self, numbers: I64) -> I64:
        """Row of each global sample number."""
        count = len(self._examples)
        epoch, within = np.divmod(numbers, count)
        return sample_at(within, epoch, count, self._key)


def evaluation_steps(examples: Examples, plan: RankPlan) -> list[list[MicroBatch]]:
    """Every example exactly once over all ranks, the same number of micro-batches on each.

    Ranks must call the model equally often (ZeRO 3 gathers weights in every call), so the last micro-batches
    are filled up with rows that have no label.
    """
    size = plan.micro_batch_size
    per_step = size * plan.size
    steps = []
    for first in range(0, len(examples), per_step):
        numbers = first + plan.rank * size + np.arange(size)
        real = numbers < len(examples)
        batch = examples.micro_batch(np.where(real, numbers, 0))
        batch["labels"] = np.where(real, batch["labels"], IGNORED_LABEL)
        steps.append([batch])
    return steps
