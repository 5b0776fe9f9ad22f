"""What a step makes of a text, and what all steps together make of a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Changes = tuple[tuple[str, int], ...]
"""What was edited and how often: ("unicode", 1), ("quality.c4_line", 12), ("pii.email", 3)..., the step's
name before the dot."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one step says of a text.

    Attributes:
        text: the text after the step.
        rule: the rule that drops the document, or "".
        detail: the measured value, for people.
        language: what the language step found.
        changes: what was edited.
    """

    text: str
    rule: str = ""
    detail: str = ""
    language: str = ""
    changes: Changes = ()


class Step(Protocol):
    """A cleaning step: a pure function of the text."""

    def __call__(self, text: str) -> Verdict:
        """Judge and edit a text."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What cleaning makes of a document.

    Attributes:
        text: the cleaned text, or None where the document is dropped.
        step: the step that dropped it, or "".
        rule: the rule of that step, or "".
        detail: the measured value, for people, or "".
        language: ISO 639 code, or "" where the language step is off or was not reached.
        changes: what the steps edited, also in a document that was dropped later.
    """

    text: str | None
    step: str = ""
    rule: str = ""
    detail: str = ""
    language: str = ""
    changes: Changes = ()
