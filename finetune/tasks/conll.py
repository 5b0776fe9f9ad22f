"""CoNLL files: a word a line with its columns, a blank line between sentences (CoNLL-2003 and kin)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from data_tools.errors import DataError

DOCUMENT_START = "-DOCSTART-"
"""First word of a line that only separates documents."""

OUTSIDE = "O"
"""The tag of a word outside of every entity, and of words behind the end of a cut sentence."""

ENTITY_PREFIXES = ("B-", "I-", "E-", "S-")


def read_conll(
    path: Path, word_column: int, tag_column: int | None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """The sentences of a file: "file:line" of the first word, words, tags.

    Args:
        path: The file; `_comment_test` says which lines are comments.
        word_column: Number of the word's column, from 0 or, negative, from the end.
        tag_column: Likewise; None leaves the tags out.

    Raises:
        DataError: No such file, no sentence, or a line without these columns or with nothing in them.
    """
    empty = True
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = [line.rstrip("\r\n") for line in file]
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


def _sentences(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number of the first word, and the lines of each sentence."""
    is_comment = _comment_test(lines)
    sentence: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and (sentence or not is_comment(line)):
            sentence.append(line)
        elif sentence:
            yield number - len(sentence), sentence
            sentence = []
    if sentence:
        yield len(lines) - len(sentence) + 1, sentence


def _comment_test(lines: Sequence[str]) -> Callable[[str], bool]:
    """Tells whether a line before a sentence is a comment.

    It begins with "# " (CoNLL-U) and cannot be the line of the word "#": that has a tab behind the "#", or,
    where spaces are between the columns of the file, as many columns as the file's first word, and neither
    "=" in one of them nor newdoc or newpar as its second; and where the last column of the file has tags of
    entities, one of them.
    """
    words = [line for line in lines if line.strip() and not line.startswith(("# ", DOCUMENT_START))]
    columns = None if not words or "\t" in words[0] else len(words[0].split())

    @cache
    def has_entities() -> bool:
        return all(_is_entity_tag(line.split()[-1]) for line in words)

    def is_comment(line: str) -> bool:
        if not line.startswith("# "):
            return False
        if "\t" in line:
            return line.split("\t")[0] != "# "
        fields = line.split()
        remark = fields[1:2] in (["newdoc"], ["newpar"]) or any("=" in field for field in fields)
        if remark or len(fields) != columns:
            return True
        return not _is_entity_tag(fields[-1]) and has_entities()

    return is_comment


def _is_entity_tag(tag: str) -> bool:
    return tag == OUTSIDE or tag.startswith(ENTITY_PREFIXES)


def _column(fields: list[str], column: int, key: str, where: str) -> str:
    if not -len(fields) <= column < len(fields):
        raise DataError(
            f"{where}: {len(fields)} columns, so there is no number {column} ({key} in the config)"
        )
    value = fields[column].strip()
    if not value and not fields[0].startswith(DOCUMENT_START):
        raise DataError(f"{where}: column {column} is empty ({key} in the config)")
    return value
