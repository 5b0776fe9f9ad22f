"""The pieces of an HTML page without anything from outside: bars, tables, texts. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2733; --soft: #5d6b7a; --line: #d8dee5;
        --bar: #2f7fb8; --drop: #c4553b; --page: #ffffff; --box: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --soft: #9aa7b4; --line: #35414d;
          --bar: #4a9fd8; --drop: #e0775e; --page: #161c22; --box: #1f272f; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--page);
       color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; } p { margin: .3rem 0; } .soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: var(--soft); }
th, td { padding: .22rem .7rem .22rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bar { width: 45%; padding-right: 0; }
.track { background: var(--box); border-radius: 3px; height: 1.1rem; }
.track div { background: var(--bar); border-radius: 3px; height: 100%; min-width: 1px; }
.track div.drop { background: var(--drop); }
pre { background: var(--box); padding: .6rem .8rem; margin: .3rem 0 .9rem; border-radius: 4px;
      white-space: pre-wrap; overflow: auto; overflow-wrap: anywhere; font-size: 13px; max-height: 14rem; }
details { margin: .3rem 0; } summary { cursor: pointer; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
@media (max-width: 45rem) { .pair { grid-template-columns: 1fr; } }
"""

Row = tuple[str, float, str]
"""Label, value, and what is written for the value."""


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """The whole page."""
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>\n{body}\n</body></html>\n'
    )


def section(title: str, *parts: str) -> str:
    """A titled part of the page; nothing if it has no content."""
    content = "\n".join(part for part in parts if part)
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def bars(rows: Sequence[Row], columns: tuple[str, str], drop: bool = False) -> str:
    """A table with a bar for each value; "" without rows.

    Args:
        rows: from top to bottom.
        columns: titles of the labels and of the values.
        drop: draw in the colour of what is thrown away.
    """
    if not rows:
        return ""
    largest = max(value for _, value, _ in rows) or 1.0
    kind = ' class="drop"' if drop else ""
    lines = "\n".join(
        f'<tr><td>{escape(label)}</td><td class="number">{escape(shown)}</td>'
        f'<td class="bar"><div class="track"><div{kind} style="width:{100 * value / largest:.2f}%">'
        "</div></div></td>"
        "</tr>"
        for label, value, shown in rows
    )
    return (
        f'<table><tr><th>{escape(columns[0])}</th><th class="number">{escape(columns[1])}</th><th></th></tr>'
        f"\n{lines}\n</table>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column holds words, the others numbers."""
    head = "".join(f"<th{_number(i)}>{escape(cell)}</th>" for i, cell in enumerate(header))
    lines = "\n".join(
        "<tr>" + "".join(f"<td{_number(i)}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>\n{lines}</table>"


def text(content: str, caption: str = "") -> str:
    """A document's text as it stands, with a line above it."""
    head = f'<p class="soft">{escape(caption)}</p>' if caption else ""
    return f"{head}<pre>{escape(content)}</pre>"


def before_and_after(before: str, after: str, caption: str) -> str:
    """Two versions of a text, side by side."""
    return (
        f'<p class="soft">{escape(caption)}</p><div class="pair"><pre>{escape(before)}</pre>'
        f"<pre>{escape(after)}</pre></div>"
    )


def folded(summary: str, *parts: str) -> str:
    """Content that shows after a click."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def heading(words: str) -> str:
    """The title of a part of a section."""
    return f"<h3>{escape(words)}</h3>"


def paragraph(words: str) -> str:
    """A line of text."""
    return f"<p>{escape(words)}</p>"


def _number(column: int) -> str:
    return ' class="number"' if column else ""
