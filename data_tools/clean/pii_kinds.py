"""What personal data and secret keys look like: a pattern for candidates and a check of each candidate.

Patterns are for RE2, which has no look-around, and work on UTF-8 bytes; the checks look at the neighbours. A
check returns the part of the candidate that is meant and its canonical form (the same number however it is
spaced), or None. Stand-ins (`pii_stand_ins`) fail every check, so that scrubbing twice changes nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

Span = tuple[int, int]
Found = tuple[Span, bytes]
"""Bytes [start, stop) of the text, and the canonical form of what stands there."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of personal data.

    Attributes:
        name: as in the configuration.
        pattern: RE2 pattern of candidates; group 1, if it has one, is the candidate, else the whole match.
        gates: a text with none of these byte strings holds no candidate; empty for no gate.
        check: from the text and the span of a candidate.
        retry: whether a rejected candidate may hide one that begins inside it.
    """

    name: str
    pattern: bytes
    gates: tuple[bytes, ...]
    check: Callable[[bytes, int, int], Found | None]
    retry: bool


def digits_of(data: bytes) -> bytes:
    """The ASCII digits of a text."""
    return bytes(byte for byte in data if 48 <= byte <= 57)


def is_word(byte: bytes) -> bool:
    """Whether a byte is a letter, digit or "_" of ASCII; "" (the end of a text) is not.

    Other letters do not count: Chinese and Japanese put no space between words and numbers.
    """
    return byte.isalnum() or byte == b"_"


def joined(data: bytes, start: int, stop: int) -> bool:
    """Whether [start, stop) is a part of something longer: a word, a version, a decimal fraction."""
    before, after = data[max(start - 2, 0) : start], data[stop : stop + 2]
    if is_word(before[-1:]) or is_word(after[:1]):
        return True
    return _links(before[-1:], before[-2:-1]) or _links(after[:1], after[1:])


def _links(mark: bytes, beyond: bytes) -> bool:
    return mark in (b".", b"-", b"+", b"~") and is_word(beyond)


# --- secrets -----------------------------------------------------------------------------------------------

_SECRETS = (
    rb"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b",  # AWS access key
    rb"(?i:aws_?secret_?(?:access_?)?key)[\"']?\s{0,3}[=:]\s{0,3}[\"']?[A-Za-z0-9/+]{40}\b",
    rb"\bgh[pousr]_[A-Za-z0-9]{36,255}\b",  # GitHub
    rb"\bgithub_pat_[A-Za-z0-9_]{82}\b",
    rb"\bgl(?:pat|dt|rt|cbt|ptt|ft|soat)-[A-Za-z0-9_\-]{20,}",  # GitLab
    rb"\bxox[abeoprs]-[A-Za-z0-9\-]{10,}",  # Slack
    rb"\bhooks\.slack\.com/services/T[A-Za-z0-9_]{8,}/B[A-Za-z0-9_]{8,}/[A-Za-z0-9_]{20,}",
    rb"\bAIza[0-9A-Za-z_\-]{35}",  # Google API
    rb"\bya29\.[0-9A-Za-z_\-]{20,}",  # Google OAuth
    rb"\bGOCSPX-[0-9A-Za-z_\-]{28}",
    rb"\b[sr]k_live_[0-9a-zA-Z]{20,}\b",  # Stripe
    rb"\bSG\.[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{32,64}",  # SendGrid
    rb"\bnpm_[A-Za-z0-9]{36}\b",
    rb"\bpypi-AgE[A-Za-z0-9_\-]{50,}",
    rb"\bhf_[A-Za-z]{34}\b",  # Hugging Face
    rb"\bsk-(?:proj-|ant-[a-z0-9]{1,8}-)?[A-Za-z0-9_\-]{32,}",  # OpenAI, Anthropic
    rb"\beyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{16,}",  # JSON Web Token (RFC 7519)
    rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s\\:,.\-]*?"
    rb"-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----",
)
_SECRET_GATES = (
    *b"AKIA ASIA ABIA ACCA gh ithub_pat_ gl xox slack.com AIza ya29. GOCSPX- k_live_ SG. npm_".split(),
    *(b"pypi-AgE", b"hf_", b"sk-", b"eyJ", b"PRIVATE KEY", b"ecret", b"ECRET"),
)


def _secret(data: bytes, start: int, stop: int) -> Found | None:
    return (start, stop), data[start:stop]


# --- e-mail ------------------------------------------------------------------------------------------------

_NOT_A_TLD = frozenset(
    b"png jpg jpeg gif svg webp ico css js service socket target timer mount slice scope path device conf "
    b"example invalid test local localhost localdomain lan internal domain tld".split()
)
"""Ends of file and unit names with an "@" (`logo@2x.png`, `getty@tty1.service`) and of reserved domains."""
_RESERVED_DOMAIN = re.compile(rb"(?:^|\.)example\.(?:com|net|org|edu)$")  # RFC 2606


_LETTER = rb"0-9A-Za-z\p{Latin}\p{Greek}\p{Cyrillic}"
_EMAIL = b"".join(
    (
        rb"[_" + _LETTER + rb"][_.+%\-" + _LETTER + rb"]*@",
        rb"(?:[" + _LETTER + rb"](?:[\-" + _LETTER + rb"]*[" + _LETTER + rb"])?\.)+[A-Za-z]{2,24}\b",
    )
)


def _email(data: bytes, start: int, stop: int) -> Found | None:
    address = data[start:stop].lower()
    local, _, domain = address.rpartition(b"@")
    if _RESERVED_DOMAIN.search(domain) or domain.rpartition(b".")[2] in _NOT_A_TLD or local == b"git":
        return None
    return (start, stop), address


# --- IBAN (ISO 13616) --------------------------------------------------------------------------------------

IBAN_LENGTHS = {
    entry[:2].encode(): int(entry[2:])
    for entry in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 "
        "EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 "
        "JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 "
        "NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 "
        "TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
    ).split()
}


def _iban(data: bytes, start: int, stop: int) -> Found | None:
    length = IBAN_LENGTHS.get(data[start : start + 2], 1 << 30)
    compact = data[start:stop].replace(b" ", b"")
    if len(compact) < length or compact[2:4] < b"02":
        return None
    end = start
    left = length
    while left:  # the candidate may have run into the next word in capitals
        left -= data[end] != 32
        end += 1
    if is_word(data[end : end + 1]):
        return None
    compact = compact[:length]
    as_number = int("".join(str(int(chr(byte), 36)) for byte in compact[4:] + compact[:4]))
    return ((start, end), compact) if as_number % 97 == 1 else None


# --- credit cards ------------------------------------------------------------------------------------------

_ISSUER = re.compile(  # issuer number ranges with their lengths (ISO/IEC 7812)
    rb"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    rb"|(?:6011|64[4-9]\d|65\d\d)\d{12}|3(?:0[0-5]|[689]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)


_FOUR_DIGITS = re.compile(rb" ?\d{4}\b ?")


def _credit_card(data: bytes, start: int, stop: int) -> Found | None:
    if joined(data, start, stop):  # part of a decimal fraction or of a longer code
        return None
    if _FOUR_DIGITS.match(data, stop) or _FOUR_DIGITS.fullmatch(data, max(start - 5, 0), start):
        return None  # four numbers of a table
    number = digits_of(data[start:stop])
    if _ISSUER.fullmatch(number) is None or not luhn(number):
        return None
    return (start, stop), number


def luhn(number: bytes) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812-1, annex B."""
    doubled = sum(sum(divmod(2 * (byte - 48), 10)) for byte in number[-2::-2])
    return (doubled + sum(byte - 48 for byte in number[-1::-2])) % 10 == 0


# --- IP addresses ------------------------------------------------------------------------------------------

_VERSION_BEFORE = re.compile(
    rb"(?:version|ver\.?|\bv|release|rev\.?|build|[<>=]=|section|chapter|[a-z]/)[ :\t(]{0,3}$", re.I
)


def _is_version(parts: bytes, before: bytes) -> bool:
    """Whether four numbers are a version: told by what stands before, or by three of one digit.

    Of all addresses 0.02 % have such parts; of the versions with four parts in Debian's change logs, most.
    """
    return sum(part < 10 for part in parts) >= 3 or _VERSION_BEFORE.search(before) is not None


def _ip(data: bytes, start: int, stop: int) -> Found | None:
    candidate = data[start:stop].rstrip(b":.")
    stop = start + len(candidate)
    if joined(data, start, stop) or (b":" in candidate and data[max(start - 1, 0) : start] == b":"):
        return None
    try:
        address = ipaddress.ip_address(candidate.decode())
    except ValueError:
        return None
    if not address.is_global or address.is_multicast:
        return None
    if address.version == 4 and _is_version(address.packed, data[max(start - 16, 0) : start]):
        return None
    return (start, stop), str(address).encode()


KINDS = (
    Kind("secret", b"|".join(_SECRETS), _SECRET_GATES, _secret, retry=False),
    Kind(
        "email",
        _EMAIL,
        (b"@",),
        _email,
        retry=False,
    ),
    Kind(
        "iban",
        rb"\b[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,4})?)\b",
        (),
        _iban,
        retry=True,
    ),
    Kind(
        "credit_card",
        rb"\b(?:\d{13,19}|\d{4}(?:[ \-]\d{4}){3}(?:[ \-]\d{3})?|3\d{3}[ \-]\d{6}[ \-]\d{4,5})\b",
        (),
        _credit_card,
        retry=True,
    ),
    Kind(
        "ip",
        rb"\b\d{1,3}(?:\.\d{1,3}){3}\b|\b[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:.]{2,41}",
        (),
        _ip,
        retry=True,
    ),
)
"""In the order in which they are replaced; phone numbers (`pii_phone`), the widest pattern, come last."""
