"""Phases: what a training reads from which sample on. A new one begins where a run goes on with other data.

The list of phases is part of the stream's state. It holds what a later run needs to know about corpora that
it may not have any more: their size, their weight and where each phase began in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_tools.errors import DataError
from pretrain.data.mixture import Mixture, build_mixture
from pretrain.data.order import IndexOrder, IndexStart
from pretrain.data.philox import derive_key
from pretrain.data.stretches import stretch_from_json, stretch_to_json
from pretrain.data.token_order import TokenOrder, TokenStart

Order = TokenOrder | IndexOrder
Start = TokenStart | IndexStart
Unit = Literal["tokens", "samples"]


@dataclass(frozen=True, slots=True)
class CorpusShare:
    """One corpus in a phase.

    Attributes:
        name, weight: as in the configuration.
        manifest: hash of the split's manifest.
        size: in `unit`.
        unit: "tokens" where samples are cut from a row of tokens (GPT), "samples" where an index has them.
        start: where the phase begins in it.
    """

    name: str
    weight: float
    manifest: str
    size: int
    unit: Unit
    start: Start

    def order(self, seq_length: int, key: np.uint64 | None) -> Order:
        """The order of its samples; `key` None keeps storage order."""
        if isinstance(self.start, TokenStart):
            return TokenOrder(self.size, seq_length, key, self.start)
        return IndexOrder(self.size, key, self.start)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        start: dict[str, Any] = {"epoch": self.start.epoch, "done": self.start.done}
        if isinstance(self.start, TokenStart) and self.start.stretches is not None:
            start["stretches"] = [stretch_to_json(stretch) for stretch in self.start.stretches]
        fields = {"name": self.name, "weight": self.weight, "manifest": self.manifest}
        return {**fields, self.unit: self.size, "start": start}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CorpusShare:
        """The inverse of `to_json`."""
        start, epoch, done = data["start"], int(data["start"]["epoch"]), int(data["start"]["done"])
        common = str(data["name"]), float(data["weight"]), str(data["manifest"])
        if "samples" in data:
            return cls(*common, int(data["samples"]), "samples", IndexStart(epoch, done))
        stretches = start.get("stretches")
        whole = None if stretches is None else tuple(stretch_from_json(one) for one in stretches)
        return cls(*common, int(data["tokens"]), "tokens", TokenStart(epoch, whole, done))


@dataclass(frozen=True, slots=True)
class Phase:
    """What is read from a sample of the training on.

    Attributes:
        first_sample: samples of the training before it.
        first_tokens: tokens before it, samples times their seq_length.
        seq_length: tokens of its samples.
        corpora: what is mixed.
    """

    first_sample: int
    first_tokens: int
    seq_length: int
    corpora: tuple[CorpusShare, ...]

    def mixture(self, seed: int) -> Mixture:
        """How the corpora are mixed; its first sample is `first_sample`."""
        names, weights = [c.name for c in self.corpora], [c.weight for c in self.corpora]
        return build_mixture(names, weights, derive_key(seed, "mixture"))

    def tokens_at(self, sample: int) -> int:
        """Tokens of the training before a sample of this phase."""
        return self.first_tokens + (sample - self.first_sample) * self.seq_length

    def same_data(self, other: Phase) -> bool:
        """Whether the other phase reads the same, wherever it began."""
        return self.seq_length == other.seq_length and self._contents() == other._contents()

    def _contents(self) -> set[tuple[Any, ...]]:
        return {(c.name, c.weight, c.manifest, c.size, c.unit) for c in self.corpora}

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "first_sample": self.first_sample,
            "first_tokens": self.first_tokens,
            "seq_length": self.seq_length,
            "corpora": [corpus.to_json() for corpus in self.corpora],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Phase:
        """The inverse of `to_json`."""
        corpora = tuple(CorpusShare.from_json(corpus) for corpus in data["corpora"])
        return cls(int(data["first_sample"]), int(data["first_tokens"]), int(data["seq_length"]), corpora)


def next_phase(phases: Sequence[Phase], wanted: Phase, consumed: int, seed: int) -> Phase:
    """The phase that continues a training with other data.

    A corpus goes on behind what the training has read of it, also where it was left out for some phases.

    Args:
        phases: so far.
        wanted: a phase that begins at sample 0: corpora, weights, seq_length of the run that goes on.
        consumed: samples of the training so far.
        seed: of the run.

    Raises:
        DataError: a corpus has other content under the same name.
    """
    corpora = tuple(
        _continued(phases, corpus, wanted.seq_length, consumed, seed) for corpus in wanted.corpora
    )
    return Phase(consumed, phases[-1].tokens_at(consumed), wanted.seq_length, corpora)


def _continued(
    phases: Sequence[Phase], corpus: CorpusShare, seq_length: int, consumed: int, seed: int
) -> CorpusShare:
    """A corpus with the start behind its last use."""
    ends = [*(phase.first_sample for phase in phases[1:]), consumed]
    for phase, end in zip(reversed(phases), reversed(ends), strict=True):
        for index, before in enumerate(phase.corpora):
            if before.name != corpus.name:
                continue
            check_same_corpus(before, corpus, phase.seq_length == seq_length)
            read = int(phase.mixture(seed).consumed(end - phase.first_sample)[index])
            order = before.order(phase.seq_length, None)
            start: Start
            if isinstance(order, TokenOrder):
                start = order.cursor(read, seq_length)
            else:
                start = order.cursor(read, phase.seq_length == seq_length)
            return CorpusShare(corpus.name, corpus.weight, corpus.manifest, corpus.size, corpus.unit, start)
    return corpus


def check_same_corpus(before: CorpusShare, now: CorpusShare, same_length: bool) -> None:
    """Refuse a corpus that is another one under an old name.

    Raises:
        DataError: naming it.
    """
    if before.manifest != now.manifest:
        raise DataError(
            f"cannot continue the data stream: corpus {now.name!r} has the manifest {now.manifest}, the "
            f"training began with {before.manifest}; restore it, or end it and add the new one under another "
            "name"
        )
    if before.unit != now.unit or (before.size != now.size and (same_length or now.unit == "tokens")):
        advice = "restore data.limit, data.masking and the model's kind"
        if before.unit == now.unit and not same_length:
            advice = (
                f"restore the limit by data.limit: {{tokens: {before.size}}} (samples: are those of "
                "batch.seq_length, which is another now)"
            )
        raise DataError(
            f"cannot continue the data stream: corpus {now.name!r} has {now.size} {now.unit}, the training "
            f"began with {before.size} {before.unit}; {advice}"
        )
