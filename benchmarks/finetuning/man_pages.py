"""Manual pages of this machine as paragraphs of words with their typeface: real text with real labels.

Authors set literal words in bold and words to be replaced in italics (man-pages(7)); options stand as terms
above their descriptions. Pages written with the mdoc macros are left out.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST_OF_A_FAMILY = 150
"""Pages whose names begin alike (git-log, git-diff): some packages bring thousands."""

SECTIONS = ("man1", "man2", "man3", "man4", "man5", "man7", "man8")
_FONT_MACROS = {"B": "B", "I": "I", "SB": "B", "SM": "R", "R": "R"}
_ESCAPE = re.compile(
    r"\\(?:f(?P<font>\((?:..)|\[[^\]]*\]|.)|\((?P<char>..)|\[(?P<named>[^\]]*)\]|s[-+]?\d+|\*(?:\(..|\[[^\]]*\]|.)"
    r"|(?P<single>.))"
)
_CHARACTERS = {
    "aq": "'", "cq": "'", "oq": "'", "lq": '"', "rq": '"', "dq": '"', "em": "--", "en": "-", "bu": "*",
    "co": "(C)", "ti": "~", "ha": "^", "rs": "\\", "mi": "-", "la": "<", "ra": ">",
}  # fmt: skip
_SINGLE = {"-": "-", "e": "\\", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`", ".": ".", "\\": "\\"}
_WORD = re.compile(r"\S+")


@dataclass(slots=True)
class Paragraph:
    """A piece of running text, or the term above one.

    Attributes:
        section: Heading that it stands under.
        is_term: Whether it is a term.
        text: With single spaces.
        fonts: For each character R (roman), B (bold) or I (italic).
    """

    section: str
    is_term: bool
    text: str = ""
    fonts: str = ""

    def words(self) -> list[tuple[str, str]]:
        """Each word with the font of most of its letters and digits."""
        found = []
        for match in _WORD.finditer(self.text):
            letters = [
                self.fonts[at] for at in range(match.start(), match.end()) if self.text[at].isalnum()
            ] or ["R"]
            found.append((match[0], Counter(letters).most_common(1)[0][0]))
        return found


@dataclass(slots=True)
class Page:
    """One manual page.

    Attributes:
        name: "grep.1".
        paragraphs: In order.
    """

    name: str
    paragraphs: list[Paragraph] = field(default_factory=list)


def read_pages(root: Path = Path("/usr/share/man")) -> list[Page]:
    """All English pages with text, at most MOST_OF_A_FAMILY of a family, in order of their names."""
    families: Counter[str] = Counter()
    pages = []
    for path in _files(root):
        name = path.name.removesuffix(".gz")
        family = re.split(r"[-_.:]", name)[0]
        if families[family] >= MOST_OF_A_FAMILY:
            continue
        page = parse(name, _content(path).splitlines())
        if sum(len(paragraph.text) for paragraph in page.paragraphs) >= 400:
            families[family] += 1
            pages.append(page)
    return pages


def parse(name: str, lines: Sequence[str]) -> Page:
    """Read the man macros that running text uses; tables, examples and definitions of macros are left out."""
    page, reader = Page(name), _Reader()
    for line in lines:
        reader.line(line)
    page.paragraphs = [p for p in reader.paragraphs if p.text]
    return page


class _Reader:
    """State of the formatter between two lines."""

    def __init__(self) -> None:
        self.paragraphs: list[Paragraph] = []
        self._section, self._font, self._last_font = "", "R", "R"
        self._until: str | None = None
        self._term_next = False
        self._begin(is_term=False)

    def line(self, line: str) -> None:
        """Read one line of source."""
        if self._until is not None:
            if line.startswith(self._until):
                self._until = None
            return
        if "\\$" in line or "\\n[" in line:  # a macro's body
            return
        if not line.startswith((".", "'")):
            if line.strip():
                self._add(line)
            else:
                self._begin(is_term=False)
            return
        name, _, rest = line[1:].strip().partition(" ")
        rest = rest.strip()
        if name in ("de", "am", "ig"):
            self._until = ".."
        elif name in ("nf", "EX", "TS", "Vb"):
            self._until = {"nf": ".fi", "EX": ".EE", "TS": ".TE", "Vb": ".Ve"}[name]
        elif name in ("SH", "SS"):
            if name == "SH":
                self._section = " ".join(_arguments(rest)).upper()
            self._begin(is_term=False)
        elif name in ("TP", "TQ"):
            self._begin(is_term=True)
            self._term_next = True
        elif name == "IP":
            self._term(_arguments(rest)[:1])
        elif name in ("PP", "P", "LP", "sp", "RS", "RE", "HP"):
            self._begin(is_term=False)
        elif name in _FONT_MACROS and rest:
            self._add(" ".join(_arguments(rest)), _FONT_MACROS[name])
        elif len(name) == 2 and set(name) <= set("BIR") and rest:
            self._alternate(name, _arguments(rest))

    def _term(self, words: Sequence[str]) -> None:
        self._begin(is_term=True)
        if words:
            self._add(words[0])
        self._begin(is_term=False)

    def _alternate(self, fonts: str, words: Sequence[str]) -> None:
        pieces = [(word, fonts[number % 2]) for number, word in enumerate(words)]
        self._put(pieces)

    def _add(self, line: str, font: str | None = None) -> None:
        self._put([(line, font)])

    def _put(self, pieces: Sequence[tuple[str, str | None]]) -> None:
        paragraph = self.paragraphs[-1]
        if paragraph.text:
            paragraph.text, paragraph.fonts = paragraph.text + " ", paragraph.fonts + "R"
        for text, font in pieces:
            before = self._font
            if font is not None:
                self._font = font
            for plain in self._plain(text):
                kept = re.sub(r"\s+", " ", plain)
                if paragraph.text.endswith(" ") or not paragraph.text:
                    kept = kept.removeprefix(" ")
                paragraph.text += kept
                paragraph.fonts += self._font * len(kept)
            if font is not None:
                self._font = before
        if paragraph.text.endswith(" "):
            paragraph.text, paragraph.fonts = paragraph.text[:-1], paragraph.fonts[:-1]
        if self._term_next:
            self._term_next = False
            self._begin(is_term=False)

    def _plain(self, text: str) -> Iterator[str]:
        """Runs of plain text; between them the font may have changed."""
        text = re.sub(r'\\["#].*', "", text)
        at = 0
        for match in _ESCAPE.finditer(text):
            yield text[at : match.start()]
            at = match.end()
            if match["font"]:
                self._change_font(match["font"].strip("([]"))
            elif (character := match["char"] or match["named"]) is not None:
                yield _CHARACTERS.get(character, "")
            elif match["single"]:
                yield _SINGLE.get(match["single"], "")
        yield text[at:]

    def _change_font(self, name: str) -> None:
        before = self._font
        known = {
            "B": "B",
            "3": "B",
            "CB": "B",
            "I": "I",
            "2": "I",
            "CI": "I",
            "P": self._last_font,
            "": self._last_font,
        }
        self._font = known.get(name, "R")
        self._last_font = before

    def _begin(self, is_term: bool) -> None:
        self.paragraphs.append(Paragraph(self._section, is_term))
        self._font = self._last_font = "R"


def _arguments(text: str) -> list[str]:
    """Words of a request's line; quotes hold several together."""
    return [
        quoted if quoted else plain for quoted, plain in re.findall(r'"((?:[^"]|"")*)"?|((?:\\ |\S)+)', text)
    ]


def _files(root: Path) -> Iterator[Path]:
    for section in SECTIONS:
        directory = root / section
        if directory.is_dir():
            yield from sorted(
                path for path in directory.iterdir() if path.is_file() and not path.is_symlink()
            )


def _content(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8", errors="replace")
