"""Each quality rule against a slow reading of its definition."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.clean.c4 import C4Rules
from data_tools.clean.config import C4Config, FineWebConfig, GopherConfig, QualityConfig, RepetitionConfig
from data_tools.clean.page import Page
from data_tools.clean.quality import QualityFilter, fineweb_broken, gopher_broken
from data_tools.clean.repetition import NGrams, RepetitionRules
from data_tools.errors import DataError
from tests.unit.data_tools.support import make_texts

WORD = st.sampled_from(
    ["the", "and", "The,", "of", "a", "of.", "7", "--", "#", "x...", "…", "é", "中文", "longer-word"]
)
LINE = st.lists(WORD, max_size=8).map(" ".join)
START = st.sampled_from(["", "", "• ", "- ", "  "])
TEXT = st.lists(st.tuples(START, LINE).map("".join), max_size=12).map("\n".join)
REPEATING = st.lists(st.sampled_from(["aa", "b", "ccc", "d\n"]), max_size=60).map(" ".join)


# --- references: word for word, no cleverness ---------------------------------------------------------------


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def repeated(units: list[str]) -> tuple[float, float]:
    """Fractions of units, and of characters, that are in a unit seen before."""
    seen: set[str] = set()
    count = characters = 0
    for unit in units:
        if unit in seen:
            count += 1
            characters += len(unit)
        seen.add(unit)
    return count / len(units), characters / sum(map(len, units))


def top_ngram_characters(words: list[str], n: int) -> int:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0
    return max(most * sum(map(len, gram)) for gram, count in counts.items() if count == most)


def duplicate_ngram_characters(words: list[str], n: int) -> int:
    seen = set()
    inside = [False] * len(words)
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            inside[i : i + n] = [True] * n
        seen.add(gram)
    return sum(len(word) for word, hit in zip(words, inside, strict=True) if hit)


def gopher_values(text: str, stop_words: list[str]) -> dict[str, float]:
    words, lines = text.split(), lines_of(text)
    found = {word.strip(".,;:!?\"'()[]").lower() for word in words} & set(stop_words)
    return {
        "words": len(words),
        "mean_word_length": sum(map(len, words)) / len(words),
        "hash_ratio": text.count("#") / len(words),
        "ellipsis_ratio": (text.count("...") + text.count("…")) / len(words),
        "bullet_line_fraction": sum(line[0] in "•‣▪●◦■-*–" for line in lines) / len(lines),
        "ellipsis_line_fraction": sum(line.endswith(("...", "…")) for line in lines) / len(lines),
        "alphabetic_word_fraction": sum(any(c.isalpha() for c in word) for word in words) / len(words),
        "stop_words": len(found),
    }


# --- Gopher -------------------------------------------------------------------------------------------------

OFF = {name: None for name in GopherConfig.model_fields if name != "stop_words"}


@given(TEXT, st.sampled_from(sorted(OFF)), st.integers(0, 20))
@settings(max_examples=250, deadline=None)
def test_each_gopher_rule_is_its_definition(text: str, rule: str, twentieths: int) -> None:
    if not text.split():
        return
    whole = rule in ("min_words", "max_words", "min_stop_words")
    limit = max(twentieths, 1) if whole else twentieths / 20 * (5 if "mean" in rule else 1)
    config = GopherConfig.model_validate({**OFF, rule: limit})
    value = gopher_values(text, config.stop_words)[rule.partition("_")[2]]
    breaks = value < limit if rule.startswith("min_") else value > limit
    broken = gopher_broken(Page(text), config)
    assert (broken is not None) == breaks
    if broken is not None and not (rule == "min_stop_words"):
        assert broken[0] == rule and math.isclose(float(broken[1]), value, abs_tol=0.005)


def test_gopher_passes_prose_and_tells_the_first_rule() -> None:
    prose = " ".join(["The boats wait in the harbour that they have left and come to see."] * 5)
    config = GopherConfig()
    assert gopher_broken(Page(prose), config) is None
    assert gopher_broken(Page("too short"), config) == ("min_words", "2")
    assert gopher_broken(Page(prose.replace("a", "1").replace("e", "2")), config) is not None
    assert gopher_broken(Page(""), GopherConfig(min_words=None)) is None


# --- repetition ---------------------------------------------------------------------------------------------


@given(REPEATING, st.integers(1, 11))
@settings(max_examples=200, deadline=None)
def test_ngram_characters_are_counted_right(text: str, n: int) -> None:
    words = text.split()
    ngrams = NGrams(Page(text))
    assert ngrams.top(n)[1] == top_ngram_characters(words, n)
    assert ngrams.duplicate(n)[1] == duplicate_ngram_characters(words, n)


@given(REPEATING, st.integers(1, 10))
@settings(max_examples=200, deadline=None)
def test_longer_ngrams_never_repeat_more(text: str, n: int) -> None:
    # The rules skip longer n-grams by this bound.
    ngrams = NGrams(Page(text))
    assert ngrams.top(n + 1)[0] <= max(ngrams.top(n)[0], 1)
    for measure in (0, 1):
        assert ngrams.duplicate(n + 1)[measure] <= ngrams.duplicate(n)[measure]


@given(REPEATING, st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_repetition_rules_are_table_a1(text: str, percent: int) -> None:
    words = text.split()
    if not words:
        return
    limit = percent / 100
    config = RepetitionConfig(
        max_duplicate_line_fraction=limit,
        max_duplicate_line_character_fraction=limit,
        max_duplicate_paragraph_fraction=limit,
        max_duplicate_paragraph_character_fraction=limit,
        max_top_ngram_character_fraction={2: limit, 3: limit, 4: limit},
        max_duplicate_ngram_character_fraction={5: limit, 6: limit, 7: limit / 2},
    )
    total = sum(map(len, words))
    by_line = repeated(lines_of(text))
    by_paragraph = repeated([part.strip() for part in text.split("\n\n") if part.strip()])
    expected = [
        ("duplicate_line", by_line[0] > limit),
        ("duplicate_line_character", by_line[1] > limit),
        ("duplicate_paragraph", by_paragraph[0] > limit),
        ("duplicate_paragraph_character", by_paragraph[1] > limit),
        *((f"top_{n}gram", top_ngram_characters(words, n) > limit * total) for n in (2, 3, 4)),
        *((f"duplicate_{n}gram", duplicate_ngram_characters(words, n) > limit * total) for n in (5, 6)),
        ("duplicate_7gram", duplicate_ngram_characters(words, 7) > limit / 2 * total),
    ]
    broken = RepetitionRules(config).broken(Page(text))
    assert (broken[0] if broken else None) == next((rule for rule, breaks in expected if breaks), None)


def test_repetition_accepts_prose_and_an_empty_text() -> None:
    rules = RepetitionRules(RepetitionConfig())
    assert rules.broken(Page(" ".join(f"word{i}" for i in range(500)))) is None
    assert rules.broken(Page("")) is None
    assert rules.broken(Page("one two")) is None
    assert rules.broken(Page("buy now cheap " * 40)) == ("top_2gram", "0.727")


# --- C4 -----------------------------------------------------------------------------------------------------


def c4_keeps(line: str, config: C4Config) -> bool:
    """The rules of section 2.2, one after another."""
    ended = line.rstrip()
    if config.terminal_punctuation and (
        not ended.endswith((".", "?", "!", '"', "”", "。", "？", "！")) or ended.endswith("...")
    ):
        return False
    if config.min_words_per_line and len(line.split()) < config.min_words_per_line:
        return False
    if config.max_word_length and any(len(word) > config.max_word_length for word in line.split()):
        return False
    if config.drop_javascript_lines and "javascript" in line.lower():
        return False
    policies = (
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    return not (config.drop_policy_lines and any(policy in line.lower() for policy in policies))


C4_WORD = st.sampled_from(
    [
        "boats",
        "wait.",
        "Why?",
        "now!",
        "JavaScript",
        "use",
        "cookies.",
        "of",
        "terms",
        "x" * 12,
        "end...",
        '"so"',
    ]
)
C4_TEXT = st.lists(st.lists(C4_WORD, max_size=8).map(" ".join), max_size=8).map("\n".join)


@given(C4_TEXT, st.booleans(), st.sampled_from([None, 1, 3, 5]), st.sampled_from([None, 10]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_c4_line_rules_are_their_definitions(
    text: str, punctuation: bool, least: int | None, longest: int | None, phrases: bool
) -> None:
    config = C4Config(
        terminal_punctuation=punctuation,
        min_words_per_line=least,
        max_word_length=longest,
        drop_javascript_lines=phrases,
        drop_policy_lines=phrases,
    )
    kept, changed = C4Rules(config).kept_lines(text)
    lines = [line for line in text.split("\n") if line]
    expected = [line for line in lines if c4_keeps(line, config)]
    assert [line for line in kept.split("\n") if line] == expected
    assert changed == len(lines) - len(expected)
    if not changed:
        assert kept == text
    assert C4Rules(config).kept_lines(kept) == (kept, 0)


def test_c4_keeps_paragraphs_and_removes_citations() -> None:
    rules = C4Rules(C4Config())
    text = "A line that has five words.[12]\nmenu\n\nshort\n\nAnother line of [edit] five words."
    assert rules.kept_lines(text) == (
        "A line that has five words.\n\nAnother line of  five words.",
        4,
    )


def test_c4_page_rules(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("grue\nbad phrase\n\n")
    rules = C4Rules(C4Config(bad_words=str(tmp_path / "bad.txt")))
    assert rules.broken("fine") is None
    assert rules.broken("int main() {") == ("curly_bracket", "{")
    assert rules.broken("Lorem Ipsum dolor") == ("lorem_ipsum", "lorem ipsum")
    assert rules.broken("a Grue.") == ("bad_word", "Grue.")
    assert rules.broken("gruesome gruels") is None
    assert rules.broken("one bad phrase here") == ("bad_word", "bad phrase")
    assert rules.too_few_sentences("One. Two.\nthree") is None
    assert rules.too_few_sentences("One.\n\nTwo") == ("too_few_sentences", "2")


@pytest.mark.parametrize(("content", "expected"), [(b"\n", "no words"), (b"\xff", "not UTF-8")])
def test_a_useless_list_of_bad_words_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        C4Rules(C4Config(bad_words=str(tmp_path / "bad.txt")))


# --- FineWeb ------------------------------------------------------------------------------------------------

FINEWEB_OFF = {name: None for name in FineWebConfig.model_fields if name.startswith(("min_", "max_"))}


@given(TEXT, st.sampled_from(sorted(FINEWEB_OFF)), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_each_fineweb_rule_is_its_definition(text: str, rule: str, twentieths: int) -> None:
    limit = twentieths / 20
    config = FineWebConfig.model_validate({**FINEWEB_OFF, rule: limit, "short_line_characters": 9})
    broken = fineweb_broken(Page(text), config)
    lines = lines_of(text)
    if not lines:
        assert broken is None
        return
    ends = (".", "?", "!", '"', "'", "”", "’", "…", "。", "？", "！")
    breaks = {
        "min_punctuated_line_fraction": sum(line.endswith(ends) for line in lines) / len(lines) <= limit,
        "max_short_line_fraction": sum(len(line) < 9 for line in lines) / len(lines) >= limit,
        "max_duplicate_line_character_fraction": repeated(lines)[1] >= limit,
        "max_newlines_per_word": text.count("\n") / len(text.split()) > limit,
    }[rule]
    assert (broken is not None and broken[0] == rule) == breaks


# --- together -----------------------------------------------------------------------------------------------


def test_the_groups_run_in_order_and_later_ones_see_the_edited_text() -> None:
    prose = "\n".join(f"The river has bend number {i} and to that it owes its long name." for i in range(12))
    menu = "\n".join(f"menu {i}" for i in range(40))
    fineweb = FineWebConfig(max_duplicate_line_character_fraction=0.2)
    assert (
        QualityFilter(QualityConfig(fineweb=fineweb))(f"{menu}\n{prose}").rule
        == "fineweb.max_short_line_fraction"
    )
    quality = QualityFilter(QualityConfig(c4=C4Config(), fineweb=fineweb))
    verdict = quality(f"{menu}\n{prose}")
    assert (verdict.text, verdict.rule, verdict.changes) == (prose, "", (("quality.c4_line", 40),))
    assert quality(menu).rule == "c4.too_few_sentences"
    both = QualityFilter(QualityConfig(gopher=GopherConfig(), c4=C4Config()))
    assert both("{").rule == "gopher.min_words"


def test_rules_that_are_off_change_nothing() -> None:
    for text in make_texts(20):
        verdict = QualityFilter(QualityConfig())(text)
        assert verdict.text is text and not verdict.rule and not verdict.changes


def test_thresholds_fall_with_n_as_in_table_a1() -> None:
    config = RepetitionConfig()
    for table in (config.max_top_ngram_character_fraction, config.max_duplicate_ngram_character_fraction):
        assert all(first > second for first, second in pairwise(table.values()))
