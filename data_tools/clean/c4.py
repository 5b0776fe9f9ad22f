"""C4's rules: Raffel et al. 2020, JMLR 21(140), section 2.2, with the line rules of its published code.

Differences: blank lines between kept lines stay as paragraph breaks, "{" and "lorem ipsum" are looked for in
the whole page, and sentences are counted with `data_tools.sentences`.
"""

from __future__ import annotations

import re
from typing import Any

from data_tools.clean.config import C4Config, read_input
from data_tools.clean.libraries import optional
from data_tools.errors import DataError
from data_tools.sentences import split_sentences

END_MARKS = (".", "?", "!", '"', "”", "。", "？", "！")
_ELLIPSIS = "..."
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n){2,}")


class C4Rules:
    """Drops pages and lines that are no prose."""

    def __init__(self, config: C4Config) -> None:
        self._config = config
        self._bad_words = None if config.bad_words is None else _bad_words(config.bad_words)

    def broken(self, text: str) -> tuple[str, str] | None:
        """The first page rule that a text breaks, and what broke it, or None."""
        if self._config.drop_curly_brackets and "{" in text:
            return "curly_bracket", "{"
        if self._config.drop_lorem_ipsum and "lorem ipsum" in text.lower():
            return "lorem_ipsum", "lorem ipsum"
        if self._bad_words is not None and (found := self._bad_words.search(text)):
            return "bad_word", found.group(0).strip()
        return None

    def kept_lines(self, text: str) -> tuple[str, int]:
        """The text without the lines that break a line rule and without citation marks; lines changed."""
        phrases = self._phrases_in(text)
        citations = self._config.remove_citations and "[" in text
        kept: list[str] = []
        changed = 0
        for line in text.split("\n"):
            # As in C4's code: marks are removed before the end is looked at, words are counted before.
            edited = _CITATION.sub("", line) if citations else line
            if not line or line.isspace() or self._keeps(line, edited.rstrip(), phrases):
                kept.append(edited)
                changed += edited != line
            else:
                changed += 1
        if not changed:
            return text, 0
        return _BLANK_LINES.sub("\n\n", "\n".join(kept)).strip("\n"), changed

    def too_few_sentences(self, text: str) -> tuple[str, str] | None:
        """The rule and the number of sentences, where a page that was edited has too few, or None."""
        least = self._config.min_sentences
        if least is None:
            return None
        count = 0
        for line in text.split("\n"):
            if line and not line.isspace():
                count += len(split_sentences(line))
                if count >= least:
                    return None
        return "too_few_sentences", str(count)

    def _phrases_in(self, text: str) -> list[str]:
        """The phrases for which lines are dropped, as far as the text has them at all."""
        phrases = ["javascript"] if self._config.drop_javascript_lines else []
        if self._config.drop_policy_lines:
            phrases += _POLICIES
        lowered = text.lower()
        return [phrase for phrase in phrases if phrase in lowered]

    def _keeps(self, line: str, edited: str, phrases: list[str]) -> bool:
        config = self._config
        if config.terminal_punctuation and (not edited.endswith(END_MARKS) or edited.endswith(_ELLIPSIS)):
            return False
        least = config.min_words_per_line
        if least is not None and len(line.split(None, least - 1)) < least:
            return False
        longest = config.max_word_length
        if longest is not None and len(line) > longest and max(map(len, line.split())) > longest:
            return False
        return not phrases or not any(map(line.lower().__contains__, phrases))


def _bad_words(path: str) -> Any:
    """A pattern that finds any of a file's words or phrases, whatever their case."""
    re2 = optional("re2", "quality.c4.bad_words")
    try:
        phrases = read_input(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, quality.c4.bad_words, is not UTF-8: {error}") from error
    words = sorted({phrase.strip() for phrase in phrases} - {""})
    if not words:
        raise DataError(f"{path}, quality.c4.bad_words, has no words")
    return re2.compile(r"(?i)(?:\W|^)(?:" + "|".join(map(re2.escape, words)) + r")(?:\W|$)")
