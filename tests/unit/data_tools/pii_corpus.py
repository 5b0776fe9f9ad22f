"""A corpus of prose with personal data at known places, and prose with look-alikes that are none."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass

LETTERS, DIGITS, HEX = string.ascii_letters, string.digits, "0123456789abcdef"


@dataclass(frozen=True)
class Planted:
    """A text with a datum of a kind at [start, stop)."""

    text: str
    kind: str
    start: int
    stop: int


def text_of(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choices(alphabet, k=length))


def digits(rng: random.Random, length: int) -> str:
    return text_of(rng, DIGITS, length)


def luhn_digit(number: str) -> str:
    """The check digit by the table method: doubled digits from a table, not by arithmetic."""
    doubled = {str(d): d * 2 if d < 5 else d * 2 - 9 for d in range(10)}
    total = sum(doubled[d] if i % 2 == 0 else int(d) for i, d in enumerate(reversed(number)))
    return str(-total % 10)


def email(rng: random.Random) -> str:
    local = rng.choice(["jo", "maria.lopez", "k-o_tan", "x99", "anna+news", "müller", "J.R.Smith"])
    host = rng.choice(["gmail.com", "mail.uni-bonn.de", "firma.co.uk", "web.example-shop.org", "post.gov.br"])
    return f"{local}{rng.randrange(1000)}@{host}"


def phone(rng: random.Random) -> str:
    area, exchange, line = (
        rng.choice(["212", "415", "702", "808"]),
        rng.choice(["234", "867", "930"]),
        digits(rng, 4),
    )
    return rng.choice(
        [
            f"({area}) {exchange}-{line}",
            f"{area}-{exchange}-{line}",
            f"{area}.{exchange}.{line}",
            f"+1 {area} {exchange} {line}",
            f"1-{area}-{exchange}-{line}",
            f"+44 20 7{digits(rng, 3)} {digits(rng, 4)}",
            f"+49 (0)89 {digits(rng, 4)} {digits(rng, 4)}",
            f"+33 1 {' '.join(digits(rng, 2) for _ in range(4))}",
            f"+81-3-{digits(rng, 4)}-{digits(rng, 4)}",
            f"+9198{digits(rng, 8)}",
        ]
    )


def ip(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return "2a00:1450:" + ":".join(f"{rng.randrange(1, 65536):x}" for _ in range(6))
    network = f"{rng.choice([23, 81, 93, 134, 151, 203])}.{rng.randrange(120, 250)}"
    return f"{network}.{rng.randrange(256)}.{rng.randrange(1, 255)}"


def credit_card(rng: random.Random) -> str:
    prefix, length = rng.choice(
        [("4", 16), ("51", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16), ("36", 14)]
    )
    number = prefix + digits(rng, length - len(prefix) - 1)
    number += luhn_digit(number)
    separator = rng.choice(["", " ", "-"])
    if length == 16:
        return separator.join(number[i : i + 4] for i in range(0, 16, 4))
    return separator.join((number[:4], number[4:10], number[10:]))


def iban(rng: random.Random) -> str:
    country, bban = rng.choice(
        [
            ("DE", digits(rng, 18)),
            ("FR", digits(rng, 23)),
            ("NL", "ABNA" + digits(rng, 10)),
            ("NO", digits(rng, 11)),
            ("GB", "WEST" + digits(rng, 14)),
            ("MT", "MALT" + digits(rng, 5) + text_of(rng, DIGITS + "ABC", 18)),
        ]
    )
    rest = 0
    for character in bban + country + "00":
        for digit in str(int(character, 36)):
            rest = (rest * 10 + int(digit)) % 97
    compact = f"{country}{98 - rest:02}{bban}"
    if rng.random() < 0.5:
        return compact
    return " ".join(compact[i : i + 4] for i in range(0, len(compact), 4))


def secret(rng: random.Random) -> str:
    word = LETTERS + DIGITS
    return rng.choice(
        [
            "AKIA" + text_of(rng, string.ascii_uppercase + DIGITS, 16),
            "ghp_" + text_of(rng, word, 36),
            "github_pat_" + text_of(rng, word, 22) + "_" + text_of(rng, word, 59),
            "glpat-" + text_of(rng, word, 20),
            "xoxb-" + digits(rng, 12) + "-" + text_of(rng, word, 24),
            "AIza" + text_of(rng, word + "_-", 34) + "a",
            "sk_live_" + text_of(rng, word, 24),
            "hf_" + text_of(rng, LETTERS, 34),
            "eyJ" + text_of(rng, word, 30) + ".eyJ" + text_of(rng, word, 40) + "." + text_of(rng, word, 43),
            "-----BEGIN RSA PRIVATE KEY-----\n"
            + "\n".join(text_of(rng, word + "+/", 64) for _ in range(6))
            + "==\n-----END RSA PRIVATE KEY-----",
        ]
    )


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "email": email,
    "phone": phone,
    "ip": ip,
    "credit_card": credit_card,
    "iban": iban,
    "secret": secret,
}
FRAMES = [
    "{}",
    "write to {} today",
    "({})",
    "see: {}.",
    "{}, or not",
    "a\t{}\nb",
    "<{}>",
    "“{}”",
    '"{}"',
    "É {}; so",
]


def planted(rng: random.Random, kind: str, count: int) -> list[Planted]:
    found = []
    for _ in range(count):
        frame, datum = rng.choice(FRAMES), MAKERS[kind](rng)
        start = frame.index("{}")
        found.append(Planted(frame.format(datum), kind, start, start + len(datum)))
    return found


def look_alike(rng: random.Random) -> str:
    """Something with the shape of personal data that is none."""
    number = "4" + digits(rng, 14)
    wrong = str((int(luhn_digit(number)) + 1) % 10)
    return rng.choice(
        [
            f"jo{rng.randrange(99)}@example.com",
            "logo@2x.png",
            "getty@tty1.service",
            "git@github.com:org/repo.git",
            "@decorator and a@b",
            f"192.168.{rng.randrange(256)}.{rng.randrange(256)}",
            f"10.0.{rng.randrange(256)}.1 and 127.0.0.1",
            f"203.0.113.{rng.randrange(256)}",
            f"2001:db8::{rng.randrange(65536):x}",
            f"version 12.34.{rng.randrange(99)}.56",
            f"libfoo-{rng.randrange(20, 40)}.11.12.13-1ubuntu2",
            f"1.2.{rng.randrange(9)}.4",
            f"OID 1.3.6.1.4.1.{rng.randrange(9999)}.2",
            f"12:{rng.randrange(10, 60)}:{rng.randrange(10, 60)}",
            f"2024-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02} 12:34:56.789",
            f"+1-212-555-01{digits(rng, 2)}",
            f"DFARS 252.227-70{digits(rng, 2)}",
            f"@@ -{digits(rng, 4)},7 +{digits(rng, 4)},9 @@",
            f"pi is 3.{digits(rng, 20)}",
            f"0x{text_of(rng, HEX, 16)}",
            f"{number}{wrong}",
            f"table {' '.join(digits(rng, 4) for _ in range(8))} end",
            f"ISBN 978-0-{digits(rng, 3)}-{digits(rng, 5)}-{digits(rng, 1)}",
            f"DE{digits(rng, 2)} is a road and GB{digits(rng, 2)} a size",
            f"uuid {text_of(rng, HEX, 8)}-1234-4321-8888-{text_of(rng, HEX, 12)}",
            f"commit {text_of(rng, HEX, 40)}",
            f"in {rng.randrange(1900, 2030)}-{rng.randrange(1900, 2030)} they sold {digits(rng, 9)} of them",
            "-----BEGIN PUBLIC KEY-----",
            "a sk-learn model, an hf_model, an npm_package",
        ]
    )
