"""CoNLL files: a word a line with its columns, a blank line between sentences (CoNLL-2003 and kin)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_tools.errors import DataError

DOCUMENT_START = "-DOCSTART-"
"""First word of a line that only separates documents."""


def read_conll(
    path: Path, word_column: int, tag_column: int | None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """The sentences of a file: "file:line" of the first word, words, tags.

    Args:
        path: The file; lines that begin with "# " before a sentence (CoNLL-U) are comments.
        word_column: Number of the word's column, from 0 or, negative, from the end.
        tag_column: Likewise; None leaves the tags out.

    Raises:
        DataError: No such file, no sentence, or a line without these columns.
    """
    empty = True
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for first, sentence in _sentences(lines):
                words, tags = [], []
                for number, line in enumerate(sentence, start=first):
                    fields = line.split("\t") if "\t" in line else line.split()
                    where = f"{path}:{number}"
                    words.append(_column(fields, word_column, "data.word_column", where))
                    if tag_column is not None:
                        tags.append(_column(fields, tag_column, "data.tag_column", where))
                if words[0] != DOCUMENT_START:
                    empty = False
                    yield f"{path}:{first}", words, tags
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start} of a block)"
        ) from error
    if empty:
        raise DataError(f"{path}: no sentences")


def _sentences(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number of the first word, and the lines of each sentence."""
    sentence: list[str] = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if line.strip() and not (line.startswith("# ") and not sentence):
            sentence.append(line)
        elif sentence:
            yield number - len(sentence), sentence
            sentence = []
    if sentence:
        yield number - len(sentence) + 1, sentence


def _column(fields: list[str], column: int, key: str, where: str) -> str:
    if not -len(fields) <= column < len(fields):
        raise DataError(
            f"{where}: {len(fields)} columns, so there is no number {column} ({key} in the config)"
        )
    return fields[column].strip()
