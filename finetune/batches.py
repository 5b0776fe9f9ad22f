"""Tokenised examples as batches: a shuffled endless stream for training, a fixed list for evaluation.

The order is a pure function of (seed, epoch): the permutation of `pretrain.data.order`. State is a count of
samples handed to the trainer, so a run goes on at any data-parallel size. The last samples of an epoch share
a batch with the first of the next.

Legend: B micro_batch_size, S longest sequence of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from pretrain.data.order import sample_at
from pretrain.data.philox import I64, derive_key
from pretrain.data.steps import RankPlan

MicroBatch = dict[str, npt.NDArray[Any]]

IGNORED_LABEL = -100
"""Target without loss (torch's cross_entropy default); nan where targets are floats."""

FILLED_WITHOUT_TARGET = {"tags": IGNORED_LABEL, "loss_mask": 0}
"""Sequences that are targets, and their value at tokens that have none."""

STATE_FORMAT = 1
"""Raised whenever the same state would mean other samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Tokenised rows of a task.

    Attributes:
        sequences: By name of the model's argument, an int array per sequence; those of one sequence are
            equally long. `tokens` is always there.
        fill: What pads each of them in a batch.
        targets: By name, [n, ...]: what the model has to find, one row per example; empty for predictions.
        padding_mask: Whether the model is told where the padding is.
        rows: [n] the row of the file that each example comes from; a long row may give several.
        notes: Per example, what the task needs to turn outputs into answers.
        truncated: Rows that were too long.
        sequences_each: Sequences of an example, which follow each other: 1, or the choices of a row.
    """

    sequences: Mapping[str, Sequence[npt.NDArray[Any]]]
    fill: Mapping[str, int]
    targets: Mapping[str, npt.NDArray[Any]]
    rows: I64
    padding_mask: bool = True
    notes: Sequence[npt.NDArray[Any]] = ()
    truncated: int = 0
    sequences_each: int = 1

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> I64:
        """[n] tokens of each example."""
        lengths = np.array([len(tokens) for tokens in self.sequences["tokens"]])
        summed: I64 = lengths.reshape(-1, self.sequences_each).sum(1)
        return summed

    @property
    def fingerprint(self) -> str:
        """Hash of sequences and targets: what a saved cursor belongs to."""
        digest = xxhash.xxh3_128()
        for name in sorted(self.targets):
            digest.update(np.ascontiguousarray(self.targets[name]).tobytes())
        for name in sorted(self.sequences):
            for values in self.sequences[name]:
                digest.update(np.int64(len(values)).tobytes())
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def micro_batch(self, numbers: Sequence[int] | I64) -> MicroBatch:
        """Stack examples, padded to the longest.

        Returns:
            Each sequence [B, S] (ints as int64), or [B, sequences_each, S] where an example has several, each
            target [B, ...], and where the model wants it padding_mask, shaped alike, bool (True = real).
        """
        chosen, each = np.asarray(numbers), self.sequences_each
        stacked = [n * each + i for n in chosen.tolist() for i in range(each)]
        lengths = np.array([len(self.sequences["tokens"][n]) for n in stacked])
        real = np.arange(lengths.max()) < lengths[:, None]
        batch: MicroBatch = {"padding_mask": real} if self.padding_mask else {}
        for name, values in self.sequences.items():
            joined = np.concatenate([values[n] for n in stacked])
            kind = np.int64 if np.issubdtype(joined.dtype, np.integer) else joined.dtype
            batch[name] = np.full(real.shape, self.fill[name], dtype=kind)
            batch[name][real] = joined
        if each > 1:
            batch = {name: values.reshape(len(chosen), each, -1) for name, values in batch.items()}
        return batch | {name: values[chosen] for name, values in self.targets.items()}

    def filled_micro_batch(self, numbers: I64) -> MicroBatch:
        """As `micro_batch`, with examples without targets in the place of numbers behind the last one."""
        real = numbers < len(self)
        batch = self.micro_batch(np.where(real, numbers, 0))
        for name in self.targets.keys() | (self.sequences.keys() & FILLED_WITHOUT_TARGET.keys()):
            ignored = np.nan if batch[name].dtype.kind == "f" else IGNORED_LABEL
            batch[name][~real] = FILLED_WITHOUT_TARGET.get(name, ignored)
        return batch


class ExampleStream:
    """Iterator over one rank's optimizer steps, with the cursor protocol of `pretrain.loop.Stream`.

    Attributes:
        consumed_samples: Samples of all ranks in the steps handed out.
    """

    def __init__(self, examples: Examples, plan: RankPlan, seed: int) -> None:
        self.consumed_samples = 0
        self._examples, self._plan = examples, plan
        self._key = derive_key(seed, "finetune")
        self._mean_tokens = float(examples.lengths.mean())
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


def evaluation_batches(examples: Examples, plan: RankPlan) -> Iterator[tuple[I64, MicroBatch]]:
    """Every example exactly once over all ranks, the same number of micro-batches on each.

    Ranks must call the model equally often (ZeRO 3 gathers weights in every call), so the last micro-batches
    are filled up with examples that have no target; their numbers lie behind the last example's.

    Returns:
        [B] numbers and the micro-batch, in turn.
    """
    size = plan.micro_batch_size
    for first in range(0, len(examples), size * plan.size):
        numbers = first + plan.rank * size + np.arange(size)
        yield numbers, examples.filled_micro_batch(numbers)
