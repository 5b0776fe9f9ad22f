"""The cleaning configuration: one YAML file, one section a step; a step whose section is absent is off.

Thresholds default to the published ones; null switches a single rule off. Sources:

- Gopher: Rae et al. 2021, arXiv:2112.11446, appendix A1.1 and table A1.
- C4: Raffel et al. 2020, JMLR 21(140), section 2.2, and its code in tensorflow_datasets (`c4_utils.py`).
- FineWeb: Penedo et al. 2024, arXiv:2406.17557, section 3.6, and its pipeline in datatrove.
- GPT-3: Brown et al. 2020, arXiv:2005.14165, appendix C.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from data_tools.clean.languages import LANGUAGES
from data_tools.dedup.config import DedupConfig
from data_tools.errors import DataError

PositiveInt = Annotated[int, Field(gt=0)]
NGramWords = Annotated[int, Field(gt=0, strict=False)]
"""A key of a mapping: not strict, since JSON has only text for keys."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Ratio = Annotated[float, Field(ge=0.0)]
_MIN_SALT_CHARACTERS = 16


def _known_language(code: str) -> str:
    if code not in LANGUAGES:
        raise PydanticCustomError(
            "unknown_language",
            'lid.176 does not know this language; its codes ("en", "de", "zh", ...) stand in '
            "https://fasttext.cc/docs/en/language-identification.html",
        )
    return code


Language = Annotated[str, AfterValidator(_known_language)]
PiiKind = Literal["secret", "email", "iban", "credit_card", "ip", "phone"]


class Section(BaseModel):
    """Base of all sections: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class UnicodeConfig(Section):
    """Repair of text: encodings, line breaks, control characters, normal form."""

    fix_encoding: bool = True
    """Undo mojibake ("schÃ¶n") with ftfy; looked for in documents that are not ASCII."""
    normalization: Literal["NFC", "NFKC"] | None = "NFC"
    """Unicode normal form (UAX #15); null keeps the text's own."""


class LanguageConfig(Section):
    """Language identification with fastText's lid.176 (Joulin et al. 2016, arXiv:1607.01759)."""

    keep: list[Language] | None = None
    """Codes (ISO 639, those of lid.176) of the languages to keep; null keeps all and only records them."""
    threshold: Fraction = 0.65
    """Least probability of the best language; FineWeb's value. Not looked at where `keep` is null."""
    sample_characters: PositiveInt = 1000
    """How much of a document's beginning is looked at; 2048 takes twice the time."""


class GopherConfig(Section):
    """Gopher's quality rules (appendix A1.1); a word is what white space separates."""

    min_words: PositiveInt | None = 50
    max_words: PositiveInt | None = 100_000
    min_mean_word_length: Ratio | None = 3.0
    """Characters."""
    max_mean_word_length: Ratio | None = 10.0
    max_hash_ratio: Ratio | None = 0.1
    """"#" signs per word."""
    max_ellipsis_ratio: Ratio | None = 0.1
    """Ellipses per word."""
    max_bullet_line_fraction: Fraction | None = 0.9
    """Lines that begin with a bullet point."""
    max_ellipsis_line_fraction: Fraction | None = 0.3
    """Lines that end with an ellipsis."""
    min_alphabetic_word_fraction: Fraction | None = 0.8
    """Words with at least one letter."""
    min_stop_words: PositiveInt | None = 2
    """Different words among `stop_words` that occur."""
    stop_words: list[str] = ["the", "be", "to", "of", "and", "that", "have", "with"]


class RepetitionConfig(Section):
    """Gopher's repetition rules (table A1); each is the largest fraction that is kept."""

    max_duplicate_line_fraction: Fraction | None = 0.30
    max_duplicate_line_character_fraction: Fraction | None = 0.20
    max_duplicate_paragraph_fraction: Fraction | None = 0.30
    max_duplicate_paragraph_character_fraction: Fraction | None = 0.20
    max_top_ngram_character_fraction: dict[NGramWords, Fraction] = {2: 0.20, 3: 0.18, 4: 0.16}
    """n: fraction of characters in the n-gram that occurs most often."""
    max_duplicate_ngram_character_fraction: dict[NGramWords, Fraction] = {
        5: 0.15,
        6: 0.14,
        7: 0.13,
        8: 0.12,
        9: 0.11,
        10: 0.10,
    }
    """n: fraction of characters in n-grams that occurred before."""


class C4Config(Section):
    """C4's rules (section 2.2): the line rules edit a document, the page rules drop it."""

    terminal_punctuation: bool = True
    """Keep only lines that end with a full stop, "!", "?" or a quotation mark."""
    min_words_per_line: PositiveInt | None = 5
    max_word_length: PositiveInt | None = 1000
    """Drop lines with a longer word (C4's code)."""
    drop_javascript_lines: bool = True
    drop_policy_lines: bool = True
    """Drop lines about cookies, terms of use and privacy policies."""
    remove_citations: bool = True
    """Remove Wikipedia's "[1]", "[edit]" and "[citation needed]"."""
    drop_lorem_ipsum: bool = True
    drop_curly_brackets: bool = True
    """Drop pages with a "{": they hold code."""
    min_sentences: PositiveInt | None = 3
    bad_words: str | None = None
    """A file of words or phrases, one a line; pages with one are dropped. C4 took LDNOOBW's list."""


class FineWebConfig(Section):
    """FineWeb's own three filters (section 3.6), and the fourth of its code."""

    min_punctuated_line_fraction: Fraction | None = 0.12
    """At most this fraction of lines ends in punctuation: drop."""
    max_duplicate_line_character_fraction: Fraction | None = 0.1
    """At least this fraction of characters is in repeated lines: drop. (The code's default is 0.01.)"""
    max_short_line_fraction: Fraction | None = 0.67
    """At least this fraction of lines is short: drop."""
    short_line_characters: PositiveInt = 30
    max_newlines_per_word: Ratio | None = 0.3
    """Of the code, not the paper: drops lists."""


class QualityConfig(Section):
    """Quality rules; an absent group is off. They run in this order."""

    gopher: GopherConfig | None = None
    repetition: RepetitionConfig | None = None
    c4: C4Config | None = None
    fineweb: FineWebConfig | None = None


class PiiConfig(Section):
    """Replacement of personal data and secret keys."""

    kinds: list[PiiKind] = ["secret", "email", "iban", "credit_card", "ip", "phone"]
    mode: Literal["replace", "tag"] = "replace"
    """`replace`: a stand-in of the same kind that belongs to nobody; `tag`: <EMAIL>, <PHONE>..."""
    salt: str = ""
    """Key of the stand-ins: the same salt and match give the same stand-in. Keep it secret: whoever has it
    can check a guess. At least 16 random characters."""


class DecontaminationConfig(Section):
    """Removal of documents that hold text of evaluation sets (GPT-3, appendix C)."""

    files: Annotated[list[str], Field(min_length=1)]
    """.txt (texts are separated by blank lines), .jsonl (every string in a record is a text) files."""
    text_keys: list[str] | None = None
    """Top-level keys of the .jsonl records to take strings from; null takes all."""
    ngram_words: PositiveInt = 13
    """Words in an n-gram, after lower-casing and removal of punctuation."""
    min_words: PositiveInt = 8
    """A benchmark text of fewer than `ngram_words` words, but at least this many, is searched for as a
    whole; a shorter one is left out."""
    min_matches: PositiveInt = 1
    """Places in a document that must match."""
    action: Literal["drop", "report"] = "drop"


class CleanConfig(Section):
    """All steps, in the order in which they run."""

    unicode: UnicodeConfig | None = None
    language: LanguageConfig | None = None
    quality: QualityConfig | None = None
    pii: PiiConfig | None = None
    decontamination: DecontaminationConfig | None = None
    dedup: DedupConfig | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps that are on, in the order in which they run."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    def identity(self) -> dict[str, Any]:
        """What the result depends on, ready for JSON: files stand there by content, the salt by its hash.

        It is published with the corpus, so the salt's hash is one that is slow to guess against.

        Raises:
            DataError: a file that the configuration names cannot be read.
        """
        identity: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        if self.pii is not None:
            identity["pii"]["salt"] = _salt_hash(self.pii.salt)
        if self.decontamination is not None:
            identity["decontamination"]["files"] = sorted(map(_digest, self.decontamination.files))
        if self.quality is not None and self.quality.c4 is not None and self.quality.c4.bad_words is not None:
            identity["quality"]["c4"]["bad_words"] = _digest(self.quality.c4.bad_words)
        return identity

    def warnings(self) -> list[str]:
        """What is allowed and yet unwise, a sentence each."""
        pii = self.pii
        if pii is None or pii.mode != "replace" or len(pii.salt) >= _MIN_SALT_CHARACTERS:
            return []
        return [
            f"pii.salt has {len(pii.salt)} characters: whoever guesses it can find out what the stand-ins "
            f"replace; set at least {_MIN_SALT_CHARACTERS} random ones and keep them secret"
        ]


def read_input(path: str) -> bytes:
    """The bytes of a file that the configuration names.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}, named by the cleaning config: {error.strerror}") from error


@cache
def _salt_hash(salt: str) -> str:
    """The salt's scrypt hash (RFC 7914), which costs 16 MB and some 0.1 s for each guess."""
    return hashlib.scrypt(salt.encode(), salt=b"headwater.pii.salt", n=2**14, r=8, p=1, dklen=32).hex()


def _digest(path: str) -> str:
    return xxhash.xxh3_128_hexdigest(read_input(path))
