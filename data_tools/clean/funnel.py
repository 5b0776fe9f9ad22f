"""What cleaning kept, edited and dropped, and why: counters and samples that merge in any order.

All numbers are integers and samples are chosen by the hash of their text, so the funnel of a corpus is the
same however its documents are divided among workers and in whatever order the parts are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os.path import commonprefix
from typing import Any

import xxhash

from data_tools.clean.config import CleanConfig
from data_tools.clean.outcome import Outcome
from data_tools.clean.samples import Sample, Samples
from data_tools.clean.tally import Tally
from data_tools.documents import Document
from data_tools.errors import DataError

_MAX_SAMPLED_CHARACTERS = 1 << 20
_EXCERPT_CHARACTERS = 400
_CONTEXT_CHARACTERS = 80


class Funnel:
    """Counts the outcomes of documents.

    Bytes are of UTF-8 text: `bytes_in` and the bytes that a step drops are those of the documents as they
    were read, `bytes_out` those of the cleaned ones.
    """

    def __init__(self, steps: Sequence[str] = (), redact: Callable[[str], str] = str) -> None:
        """An empty funnel.

        Args:
            steps: names of the steps that are on, in order (`CleanConfig.steps`).
            redact: applied to a text, an id and a source before a sample shows them (`Cleaner.redact`).
        """
        self.steps = tuple(steps)
        self._redact = redact
        self._tally = Tally()
        self._samples = Samples()

    def add(self, document: Document, outcome: Outcome) -> None:
        """Count a document, given as it was read, and what became of it."""
        size = _utf8_bytes(document.text)
        self._tally.add(1, "in", "documents")
        self._tally.add(size, "in", "bytes")
        self._tally.add(1, "characters_in", _bin(document.text))
        for step in {name.partition(".")[0] for name, _ in outcome.changes}:
            self._tally.add(1, "changed", step)
            if outcome.text is not None:
                self._sample_changed(step, document, outcome.text)
        for name, count in outcome.changes:
            self._tally.add(count, "edits", name)
        if outcome.text is None:
            self._add_dropped(document, size, outcome)
        else:
            self._add_kept(outcome.text, outcome.language)

    def merge(self, other: Funnel) -> None:
        """Add the funnel of another part of the corpus."""
        self.steps = tuple({**dict.fromkeys(self.steps), **dict.fromkeys(other.steps)})
        self._tally.merge(other._tally)
        self._samples.merge(other._samples)

    def to_json(self) -> dict[str, Any]:
        """The funnel, ready for JSON; equal funnels give equal objects with their keys in the same order."""
        total = {unit: self._tally.get("in", unit) for unit in ("documents", "bytes")}
        left = dict(total)
        steps = []
        for name in self._all_steps():
            rules = self._tally.below("dropped", name)
            dropped = {
                rule: {unit: self._tally.get("dropped", name, rule, unit) for unit in left} for rule in rules
            }
            gone = {unit: sum(counts[unit] for counts in dropped.values()) for unit in left}
            steps.append(
                {
                    "name": name,
                    "documents_in": left["documents"],
                    "bytes_in": left["bytes"],
                    "documents_dropped": gone["documents"],
                    "bytes_dropped": gone["bytes"],
                    "dropped": dropped,
                    "documents_changed": self._tally.get("changed", name),
                    "edits": {key: self._tally.get("edits", key) for key in self._edits_of(name)},
                }
            )
            left = {unit: left[unit] - gone[unit] for unit in left}
        return {
            "documents_in": total["documents"],
            "bytes_in": total["bytes"],
            "documents_out": self._tally.get("out", "documents"),
            "bytes_out": self._tally.get("out", "bytes"),
            "steps": steps,
            "languages": {
                code: {unit: self._tally.get("languages", code, unit) for unit in left}
                for code in self._tally.below("languages")
            },
            "characters_in": self._characters("characters_in"),
            "characters_out": self._characters("characters_out"),
            "samples": self._samples.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Funnel:
        """The funnel that `to_json` described.

        Raises:
            DataError: `data` is no such description.
        """
        try:
            funnel = cls([step["name"] for step in data["steps"]])
            for key, count in _counts_of(data):
                funnel._tally.add(count, *key)
            funnel._samples = Samples.from_json(data["samples"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a cleaning funnel: {error!r}") from error
        return funnel

    def _add_kept(self, text: str, language: str) -> None:
        size = _utf8_bytes(text)
        self._tally.add(1, "out", "documents")
        self._tally.add(size, "out", "bytes")
        self._tally.add(1, "characters_out", _bin(text))
        if language:
            self._tally.add(1, "languages", language, "documents")
            self._tally.add(size, "languages", language, "bytes")

    def _add_dropped(self, document: Document, size: int, outcome: Outcome) -> None:
        group = ("dropped", outcome.step, outcome.rule)
        self._tally.add(1, *group, "documents")
        self._tally.add(size, *group, "bytes")
        digest = _digest(document.text)
        if self._samples.wants(group, digest):
            shown = self._shown(document.text)
            self._samples.add(group, self._sample(document, digest, outcome.detail, _excerpt(shown, 0), ""))

    def _sample_changed(self, step: str, document: Document, cleaned: str) -> None:
        group, digest = ("changed", step, ""), _digest(document.text)
        if not self._samples.wants(group, digest):
            return
        before, after = self._shown(document.text), cleaned[:_MAX_SAMPLED_CHARACTERS]
        if before == after:  # all that changed is what a report may not show
            at = len(commonprefix([document.text, cleaned]))
            before_excerpt = ""
        else:
            at = len(commonprefix([before, after]))
            before_excerpt = _excerpt(before, at)
        self._samples.add(group, self._sample(document, digest, "", before_excerpt, _excerpt(after, at)))

    def _sample(self, document: Document, digest: str, detail: str, before: str, after: str) -> Sample:
        source, name = self._redact(document.source), self._redact(document.id)
        return Sample(digest, source, name, document.position, detail, before, after)

    def _shown(self, text: str) -> str:
        return self._redact(text[:_MAX_SAMPLED_CHARACTERS])

    def _characters(self, name: str) -> dict[str, int]:
        return {key: self._tally.get(name, key) for key in sorted(self._tally.below(name), key=int)}

    def _all_steps(self) -> list[str]:
        """Steps that are on or did anything, in the order in which they run."""
        names = {*self.steps, *self._tally.below("dropped"), *self._tally.below("changed")}
        order = list(CleanConfig.model_fields)
        return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))

    def _edits_of(self, step: str) -> list[str]:
        return [name for name in self._tally.below("edits") if name.partition(".")[0] == step]


def publish_funnel(funnel: dict[str, Any]) -> dict[str, Any]:
    """A funnel (`Funnel.to_json`) for a corpus: without the samples' hashes, which would confirm a guess.

    It is for people; `Funnel.from_json` refuses it.
    """
    samples = [
        {
            **group,
            "documents": [{key: one[key] for key in one if key != "hash"} for one in group["documents"]],
        }
        for group in funnel["samples"]
    ]
    return {**funnel, "samples": samples}


def _counts_of(data: dict[str, Any]) -> Iterable[tuple[tuple[str, ...], int]]:
    for place in ("in", "out"):
        for unit in ("documents", "bytes"):
            yield (place, unit), data[f"{unit}_{place}"]
    for step in data["steps"]:
        yield ("changed", step["name"]), step["documents_changed"]
        for name, count in step["edits"].items():
            yield ("edits", name), count
        for rule, counts in step["dropped"].items():
            for unit, count in counts.items():
                yield ("dropped", step["name"], rule, unit), count
    for code, counts in data["languages"].items():
        for unit, count in counts.items():
            yield ("languages", code, unit), count
    for name in ("characters_in", "characters_out"):
        for key, count in data[name].items():
            yield (name, key), count


def _excerpt(text: str, at: int) -> str:
    start = max(0, at - _CONTEXT_CHARACTERS)
    return text[start : start + _EXCERPT_CHARACTERS]


def _digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _bin(text: str) -> str:
    """The largest power of two that is not more than the characters of a text, or 0, as a JSON key."""
    return str(1 << len(text).bit_length() - 1) if text else "0"
