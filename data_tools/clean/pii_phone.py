"""Phone numbers: what looks like one, and what tells them from other numbers.

Found are numbers with a country code ("+44 20 7946 0958"), North American numbers with separators
("(212) 555-2368", "212-555-2368") and numbers after a word such as "phone:". Other national formats without
such a word are not: they cannot be told from part numbers, dates and tables.
"""

from __future__ import annotations

import re

from data_tools.clean.pii_kinds import Found, Kind, digits_of, is_word

_CALLING_CODE = re.compile(  # ITU-T E.164, assigned country codes
    rb"[17]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    rb"|2[1-69]\d|3[578]\d|42[013]|5[09]\d|6[789]\d|8[0578]\d|9[679]\d"
)
_NANP = re.compile(rb"1?[2-9](?!11)[0-8]\d[2-9](?!11)\d{6}")
_FICTIONAL = re.compile(rb"555\D{0,2}01\d\d(?!\d)")  # set aside for fiction in North America
_DIGIT = re.compile(rb"\d")


def _phone(data: bytes, start: int, stop: int) -> Found | None:
    if data[start : start + 1] == b"(" and data.count(b"(", start, stop) > data.count(b")", start, stop):
        start += 1
    before = data[max(start - 2, 0) : start]
    if is_word(before[-1:]) or before[-1:] in (b".", b"-", b"/", b"+", b"=", b"&", b"#", b"$", b"~"):
        return None
    international = b"+" in data[start : start + 2]
    if international and digits_of(data[start : start + 5])[:1] == b"1":
        stop = _end_of_digits(data, start, stop, 11)
    number = digits_of(data[start:stop])
    after = data[stop : stop + 2]
    if is_word(after[:1]) or (after[:1] in (b".", b"-", b"/", b",", b":") and after[1:].isdigit()):
        return None
    if _FICTIONAL.search(data, start, stop):
        return None
    if international:
        if _CALLING_CODE.match(number) is None or not 8 <= len(number) <= 15:
            return None
        if number[:1] == b"1" and _NANP.fullmatch(number) is None:
            return None
        return (start, stop), b"+" + number
    north_american = _NANP.fullmatch(number) is not None
    if _after_word(data, start):
        return (start, stop), b"+1" + number[-10:] if north_american else number
    if not north_american or _MIXED.search(data, start, stop) or _in_table(data, start, stop):
        return None
    return (start, stop), b"+1" + number[-10:]


def _in_table(data: bytes, start: int, stop: int) -> bool:
    """Whether a number with spaces has a number beside it."""
    if b" " not in data[start:stop] or data[start : start + 1] == b"(":
        return False
    before, after = data[max(start - 2, 0) : start], data[stop : stop + 2]
    return (before[1:] == b" " and before[:1].isdigit()) or (after[:1] == b" " and after[1:].isdigit())


def _end_of_digits(data: bytes, start: int, stop: int, count: int) -> int:
    """Where the first `count` digits end, or `stop`."""
    for match in _DIGIT.finditer(data, start, stop):
        count -= 1
        if not count:
            return match.end()
    return stop


_MIXED = re.compile(rb"\d\.\d+[ -]|[ -]\d+\.")
"""Full stops and other separators in one number: "252.227-7014" is a paragraph of a law."""
_WORD_BEFORE = re.compile(rb"(?:tel|phone|mobile|cell|fax|call)[\w .:()]{0,16}$", re.IGNORECASE)


def _after_word(data: bytes, start: int) -> bool:
    return _WORD_BEFORE.search(data[max(start - 28, 0) : start]) is not None


PHONE = Kind(
    "phone",
    rb"(\(?\+\(?[1-9](?:[ .\-/()]{0,3}\d){6,14})"
    rb"|(?i:\b(?:tele)?(?:phone|tel|mobile|cell|fax|call)(?: (?:no|number|us|us at|at))?\b[.:]{0,2}\s{0,2})"
    rb"(\(?\d(?:[ .\-/()]{0,2}\d){6,14})"
    rb"|((?:\b1[ .\-])?(?:\(\d{3}\) ?|\b\d{3}[ .\-])\d{3}[ .\-]\d{4})\b",
    (),
    _phone,
    retry=True,
)
