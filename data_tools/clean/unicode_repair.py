"""The step `unicode`: line breaks, control characters, encodings and normal form.

Everything that can be wrong in ASCII text too is repaired here for every document; ftfy, which is slow, is
asked only about the lines of documents that are not ASCII and look like mojibake.
"""

from __future__ import annotations

import re
import unicodedata

from data_tools.clean.config import UnicodeConfig
from data_tools.clean.libraries import optional
from data_tools.clean.outcome import Verdict

_TERMINAL_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_ASCII_SUSPECT = bytes([*range(0x09), *range(0x0B, 0x20), 0x7F])
_CONTROL = dict.fromkeys([*range(0x09), *range(0x0E, 0x20), *range(0x7F, 0xA0), 0xFEFF])
# A form feed or vertical tab between two lines must not join them.
_LINE_BREAK = dict.fromkeys([0x0B, 0x0C, 0x0D, 0x2028, 0x2029], "\n")
_TABLE: dict[int, str | None] = {**_CONTROL, **_LINE_BREAK}

_MAX_ROUNDS = 8
"""One repair can uncover the next (mojibake made twice); texts settle after two or three rounds."""


class UnicodeRepair:
    """Repairs a text until nothing is left to repair, so that a second repair changes nothing."""

    def __init__(self, config: UnicodeConfig) -> None:
        self._form = config.normalization
        self._fixes = config.fix_encoding
        if config.fix_encoding:
            self._ftfy = optional("ftfy", "unicode")
            self._badness = optional("ftfy.badness", "unicode")

    def __call__(self, text: str) -> Verdict:
        """The repaired text; changes count 1 when it differs."""
        repaired = self._round(text)
        if repaired is text or repaired == text:
            return Verdict(text)
        for _ in range(_MAX_ROUNDS):
            before, repaired = repaired, self._round(repaired)
            if repaired == before:
                break
        return Verdict(repaired, changes=(("unicode", 1),))

    def _round(self, text: str) -> str:
        if not text.isascii():
            text = self._fix_encoding(text)
            if self._form is not None:
                text = unicodedata.normalize(self._form, text)
        return _remove_controls(text)

    def _fix_encoding(self, text: str) -> str:
        if not self._fixes:
            return text
        # Line by line, as ftfy does itself: one bad line must not change how the others are read.
        lines = text.split("\n")
        bad = [at for at, line in enumerate(lines) if not line.isascii() and self._badness.is_bad(line)]
        for at in bad:
            lines[at] = self._ftfy.fix_encoding(lines[at], explain=False)
        return "\n".join(lines) if bad else text


def _remove_controls(text: str) -> str:
    """`text` with line feeds for all line breaks and without control characters but tab and line feed."""
    if text.isascii():
        if len(text.encode().translate(None, _ASCII_SUSPECT)) == len(text):
            return text
    elif _SUSPECT.search(text) is None:
        return text
    return _TERMINAL_ESCAPE.sub("", text.replace("\r\n", "\n")).translate(_TABLE)
