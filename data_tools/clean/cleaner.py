"""All cleaning steps of a configuration, one document at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_tools.clean.config import CleanConfig
from data_tools.clean.decontamination import Decontamination
from data_tools.clean.funnel import Funnel
from data_tools.clean.language import LanguageFilter
from data_tools.clean.outcome import Outcome, Step
from data_tools.clean.pii import PiiScrubber
from data_tools.clean.quality import QualityFilter
from data_tools.clean.unicode_repair import UnicodeRepair

_STEPS: dict[str, Callable[[Any], Step]] = {
    "unicode": UnicodeRepair,
    "language": LanguageFilter,
    "quality": QualityFilter,
    "pii": PiiScrubber,
    "decontamination": Decontamination,
}
"""In the order in which they run. `dedup` compares documents, so it is not among them."""


class Cleaner:
    """Runs the steps that a configuration switches on.

    Building one loads models and benchmark files: a worker builds its own, once, from the configuration,
    which can be pickled.
    """

    def __init__(self, config: CleanConfig) -> None:
        self._on = config.steps
        self._steps = {
            name: build(section)
            for name, build in _STEPS.items()
            if (section := getattr(config, name)) is not None
        }

    @property
    def redacts(self) -> bool:
        """Whether reports may show documents only after `redact`: the step `pii` is on."""
        return "pii" in self._steps

    def clean(self, text: str) -> Outcome:
        """Clean a document: a pure function of the text and the configuration."""
        language = ""
        changes: list[tuple[str, int]] = []
        for name, step in self._steps.items():
            verdict = step(text)
            language = verdict.language or language
            changes += verdict.changes
            rule = verdict.rule
            if not rule and verdict.text is not text and not verdict.text.strip():
                rule = "nothing_left"
            if rule:
                return Outcome(None, name, rule, verdict.detail, language, tuple(changes))
            text = verdict.text
        return Outcome(text, language=language, changes=tuple(changes))

    def funnel(self) -> Funnel:
        """An empty funnel for this cleaner's outcomes; it shows no personal data that the cleaner knows."""
        return Funnel(self._on, self.redact)

    def redact(self, text: str) -> str:
        """A text as a report may show it: without personal data where the step `pii` is on.

        A text whose personal data only its repair makes recognisable is shown repaired.
        """
        scrub, repair = self._steps.get("pii"), self._steps.get("unicode")
        if scrub is None:
            return text
        if repair is not None and (repaired := scrub(repair(text).text)).changes:
            return repaired.text
        return scrub(text).text
