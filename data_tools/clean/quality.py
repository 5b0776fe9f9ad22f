"""The step `quality`: rules that tell prose from menus, lists, code and noise.

Gopher's rules are those of Rae et al. 2021 (arXiv:2112.11446, appendix A1.1), FineWeb's those of Penedo et
al. 2024 (arXiv:2406.17557, section 3.6). They suit languages that put spaces between words.
"""

from __future__ import annotations

from data_tools.clean.c4 import C4Rules
from data_tools.clean.config import FineWebConfig, GopherConfig, QualityConfig
from data_tools.clean.outcome import Changes, Verdict
from data_tools.clean.page import Page, duplicate_character_fraction
from data_tools.clean.repetition import RepetitionRules

BULLETS = ("•", "‣", "▪", "●", "◦", "■", "-", "*", "–")
ELLIPSES = ("...", "…")
LINE_ENDS = (".", "?", "!", '"', "'", "”", "’", "…", "。", "？", "！")


class QualityFilter:
    """Applies the rules that are on; a rule is named by its group and itself, as `gopher.min_words`."""

    def __init__(self, config: QualityConfig) -> None:
        self._gopher = config.gopher
        self._fineweb = config.fineweb
        self._repetition = None if config.repetition is None else RepetitionRules(config.repetition)
        self._c4 = None if config.c4 is None else C4Rules(config.c4)

    def __call__(self, text: str) -> Verdict:
        """Judge a text; C4's line rules edit it, and the rules after them see what is left."""
        page = Page(text)
        if self._gopher is not None and (broken := gopher_broken(page, self._gopher)):
            return Verdict(text, f"gopher.{broken[0]}", broken[1])
        if self._repetition is not None and (broken := self._repetition.broken(page)):
            return Verdict(text, f"repetition.{broken[0]}", broken[1])
        changes: Changes = ()
        if self._c4 is not None:
            if broken := self._c4.broken(text):
                return Verdict(text, f"c4.{broken[0]}", broken[1])
            text, lines = self._c4.kept_lines(text)
            if lines:
                changes = (("quality.c4_line", lines),)
                page = Page(text)
            if broken := self._c4.too_few_sentences(text):
                return Verdict(text, f"c4.{broken[0]}", broken[1], changes=changes)
        if self._fineweb is not None and (broken := fineweb_broken(page, self._fineweb)):
            return Verdict(text, f"fineweb.{broken[0]}", broken[1], changes=changes)
        return Verdict(text, changes=changes)


def gopher_broken(page: Page, config: GopherConfig) -> tuple[str, str] | None:
    """The first of Gopher's quality rules that a page breaks, and the measured value, or None."""
    text, words = page.text, len(page.words)
    if config.min_words is not None and words < config.min_words:
        return "min_words", str(words)
    if config.max_words is not None and words > config.max_words:
        return "max_words", str(words)
    if not words:
        return None
    mean = page.word_characters / words
    if config.min_mean_word_length is not None and mean < config.min_mean_word_length:
        return "min_mean_word_length", f"{mean:.2f}"
    if config.max_mean_word_length is not None and mean > config.max_mean_word_length:
        return "max_mean_word_length", f"{mean:.2f}"
    if config.max_hash_ratio is not None and (ratio := text.count("#") / words) > config.max_hash_ratio:
        return "max_hash_ratio", f"{ratio:.3f}"
    ratio = sum(map(text.count, ELLIPSES)) / words
    if config.max_ellipsis_ratio is not None and ratio > config.max_ellipsis_ratio:
        return "max_ellipsis_ratio", f"{ratio:.3f}"
    return _gopher_lines_broken(page, config) or _gopher_words_broken(page, config)


def _gopher_lines_broken(page: Page, config: GopherConfig) -> tuple[str, str] | None:
    lines = page.lines
    bullets = sum(line.startswith(BULLETS) for line in lines) / len(lines)
    if config.max_bullet_line_fraction is not None and bullets > config.max_bullet_line_fraction:
        return "max_bullet_line_fraction", f"{bullets:.3f}"
    ellipses = sum(line.endswith(ELLIPSES) for line in lines) / len(lines)
    if config.max_ellipsis_line_fraction is not None and ellipses > config.max_ellipsis_line_fraction:
        return "max_ellipsis_line_fraction", f"{ellipses:.3f}"
    return None


def _gopher_words_broken(page: Page, config: GopherConfig) -> tuple[str, str] | None:
    if (least := config.min_alphabetic_word_fraction) is not None:
        fraction = _alphabetic_fraction(page)
        if fraction < least:
            return "min_alphabetic_word_fraction", f"{fraction:.3f}"
    if config.min_stop_words is not None:
        found = _stop_words(page, frozenset(config.stop_words), config.min_stop_words)
        if found < config.min_stop_words:
            return "min_stop_words", str(found)
    return None


def _alphabetic_fraction(page: Page) -> float:
    """Fraction of words with at least one letter."""
    without = {
        word
        for word in page.vocabulary
        if not (word.islower() or word.isalpha() or any(map(str.isalpha, word)))  # the first two are faster
    }
    if not without:
        return 1.0
    return (len(page.words) - sum(map(without.__contains__, page.words))) / len(page.words)


def _stop_words(page: Page, stop_words: frozenset[str], enough: int) -> int:
    """How many of the stop words occur, capitals and punctuation aside; `enough` of them end the search."""
    found = len(stop_words & page.vocabulary.keys())
    if found >= enough:
        return found
    return len(stop_words & {word.strip(".,;:!?\"'()[]").lower() for word in page.vocabulary})


def fineweb_broken(page: Page, config: FineWebConfig) -> tuple[str, str] | None:
    """The first of FineWeb's rules that a page breaks, and the measured value, or None."""
    lines = page.lines
    if not lines:
        return None
    if (limit := config.min_punctuated_line_fraction) is not None:
        fraction = sum(line.endswith(LINE_ENDS) for line in lines) / len(lines)
        if fraction <= limit:
            return "min_punctuated_line_fraction", f"{fraction:.3f}"
    if (limit := config.max_short_line_fraction) is not None:
        fraction = sum(len(line) < config.short_line_characters for line in lines) / len(lines)
        if fraction >= limit:
            return "max_short_line_fraction", f"{fraction:.3f}"
    if (limit := config.max_duplicate_line_character_fraction) is not None:
        fraction = duplicate_character_fraction(lines)
        if fraction >= limit:
            return "max_duplicate_line_character_fraction", f"{fraction:.3f}"
    if (limit := config.max_newlines_per_word) is not None:
        ratio = page.text.count("\n") / len(page.words)
        if ratio > limit:
            return "max_newlines_per_word", f"{ratio:.3f}"
    return None
