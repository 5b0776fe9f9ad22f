"""The vocabulary of a corpus: text to token ids and back, by one interface for three kinds of file.

    tokenizer.model     our own: lossless sentencepiece, made by `headwater data tokenizer`
    tokenizer.json      any Hugging Face fast tokenizer
    vocabulary.json     integer streams (protein, DNA, items, audio codes): sizes and special ids, no text

A file is known by its content; its name is fixed only inside a corpus or a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from data_tools.errors import DataError
from data_tools.tokenizer.hugging_face import HuggingFaceTokenizer
from data_tools.tokenizer.integers import IntegerVocabulary
from data_tools.tokenizer.interface import FILE_NAMES, ROLES, Encoding, Tokenizer, parse_json
from data_tools.tokenizer.sentencepiece_model import (
    CLS,
    EOD,
    MASK,
    PAD,
    SEP,
    SPECIAL_PIECES,
    UNK,
    WORD_BOUNDARY,
    SentencePieceTokenizer,
)

__all__ = [
    "CLS",
    "EOD",
    "FILE_NAMES",
    "MASK",
    "PAD",
    "ROLES",
    "SEP",
    "SPECIAL_PIECES",
    "UNK",
    "WORD_BOUNDARY",
    "Encoding",
    "HuggingFaceTokenizer",
    "IntegerVocabulary",
    "SentencePieceTokenizer",
    "Tokenizer",
    "corpus_tokenizer",
    "load_tokenizer",
]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer or vocabulary file of any kind.

    Raises:
        DataError: the file cannot be read, or is none that we know; says what it lacks.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    if not content.lstrip().startswith(b"{"):  # a serialized sentencepiece model begins with byte 0x0a, tag 1
        return SentencePieceTokenizer(content, path)
    try:
        fields = parse_json(content, path)
    except DataError as error:
        raise DataError(f"{error}, so it is no tokenizer: name a {', '.join(FILE_NAMES)}") from error
    if "kind" in fields:
        return IntegerVocabulary(content, path)
    if "model" in fields:
        return HuggingFaceTokenizer(content, path)
    raise DataError(
        f'{path}: neither a Hugging Face tokenizer.json (it has no "model") nor a vocabulary of integers '
        '(it has no "kind")'
    )


def corpus_tokenizer(directory: Path) -> Path:
    """The one tokenizer file in a corpus or checkpoint directory.

    Raises:
        DataError: there is none, or more than one.
    """
    found = [directory / name for name in FILE_NAMES if (directory / name).is_file()]
    if not found:
        raise DataError(f"no tokenizer in {directory}: expected one of {', '.join(FILE_NAMES)}")
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{directory} has {names}: remove the one that did not make its tokens")
    return found[0]
