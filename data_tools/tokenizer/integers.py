"""The vocabulary of an integer stream: protein, DNA, items, image or audio codes.

    {"kind": "integers", "vocab_size": 25, "special": {"eod": 24, "pad": 20}, "symbols": ["A", "C", ...]}

`vocab_size` counts every id, the special ones too. `special` gives ids to roles (pad, unk, cls, sep, mask,
eod); GPT needs eod, BERT all but unk. `symbols`, optional, are what ids 0, 1, ... are shown as. There is no
text: documents come tokenised.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.publish import write_file
from data_tools.tokenizer.interface import (
    ROLES,
    SURROGATE,
    Bools,
    Encoding,
    Tokenizer,
    checked_ids,
    parse_json,
)

APPENDED = ("pad", "cls", "sep", "mask", "eod")
"""The special ids that `new_vocabulary` puts behind the symbols, in this order."""

_LARGEST = 1 << 31
_FIELDS = {"kind", "vocab_size", "special", "symbols"}


class IntegerVocabulary(Tokenizer):
    """Sizes and special ids of an integer stream; every token is a word of its own."""

    file_name = "vocabulary.json"

    def __init__(self, content: bytes, path: Path) -> None:
        """Read a vocabulary.json.

        Raises:
            DataError: a field is missing, unknown or wrong; names it.
        """
        fields = parse_json(content, path)
        problem = _problem(fields)
        if problem:
            raise DataError(f"{path}: {problem}")
        super().__init__(content, path, fields["vocab_size"], fields["special"])
        self.symbols: tuple[str, ...] = tuple(fields.get("symbols", ()))

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Refuse: there is no text in an integer stream.

        Raises:
            DataError: always.
        """
        raise self._no_text()

    def _no_text(self) -> DataError:
        return DataError(
            f"{self.path} is a vocabulary of integers, it cannot encode text: name the key of the token "
            "lists with --token-key, or give a tokenizer"
        )

    def encode_with_spans(self, texts: Sequence[str]) -> list[Encoding]:
        """Refuse, as `encode_batch` does.

        Raises:
            DataError: always.
        """
        raise self._no_text()

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Symbols, without spaces where each is one character; numbers where there are none."""
        pieces = [self.id_to_piece(i) for i in checked_ids(self, ids) if not self._is_reserved[i]]
        return ("" if self._single else " ").join(pieces)

    def id_to_piece(self, token_id: int) -> str:
        """The symbol of an id, "[PAD]" and the like for a special one, else the number."""
        return self._special_names.get(token_id) or (
            self.symbols[token_id] if token_id < len(self.symbols) else str(token_id)
        )

    @cached_property
    def _special_names(self) -> dict[int, str]:
        return {
            i: f"[{role.upper()}]"
            for role in reversed(ROLES)
            if (i := getattr(self, f"{role}_id")) is not None
        }

    @cached_property
    def _single(self) -> bool:
        shown = [s for i, s in enumerate(self.symbols) if i not in self.reserved_ids]
        return len(shown) == self.vocab_size - len(self.reserved_ids) and all(len(s) == 1 for s in shown)

    def _looked_for(self, missing: Sequence[str]) -> str:
        return f'; add {" and ".join(missing)} to "special" in it, and to its vocab_size'

    @cached_property
    def is_word_start(self) -> Bools:
        """See `Tokenizer.is_word_start`: all."""
        return self._mask(lambda _: True, special=True)

    @cached_property
    def is_word_end(self) -> Bools:
        """See `Tokenizer.is_word_end`: all."""
        return self._mask(lambda _: True, special=True)

    @cached_property
    def is_byte(self) -> Bools:
        """See `Tokenizer.is_byte`: none."""
        return self._mask(lambda _: False, special=False)


def new_vocabulary(
    path: Path, symbol_count: int, symbols: Sequence[str] = ()
) -> tuple[IntegerVocabulary, bool]:
    """Write a vocabulary of the ids 0..symbol_count-1, with special ids (`APPENDED`) behind them.

    Args:
        path: the file; one with the same content is left alone.
        symbol_count: ordinary ids.
        symbols: what they are shown as; none or one for each.

    Returns:
        The vocabulary, and whether it was written now.

    Raises:
        DataError: the numbers do not fit, or another file is in the way.
    """
    if not 1 <= symbol_count <= _LARGEST - len(APPENDED):
        raise DataError(f"--vocab-size must lie in [1, {_LARGEST - len(APPENDED)}], not {symbol_count}")
    if symbols and len(symbols) != symbol_count:
        raise DataError(f"{len(symbols)} --symbols, but --vocab-size {symbol_count}: give one for each id")
    for symbol in filter(SURROGATE.search, symbols):
        raise DataError(f"--symbols {symbol!r} is not UTF-8")
    special = {role: symbol_count + index for index, role in enumerate(APPENDED)}
    fields: dict[str, Any] = {
        "kind": "integers",
        "vocab_size": symbol_count + len(special),
        "special": special,
    }
    if symbols:
        fields["symbols"] = list(symbols)
    content = (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()
    vocabulary = IntegerVocabulary(content, path)
    if path.exists():
        if path.read_bytes() != content:
            raise DataError(f"{path} exists and is not this vocabulary: remove it or choose another --out")
        return vocabulary, False
    write_file(path, content)
    return vocabulary, True


def _problem(fields: dict[str, Any]) -> str:
    """What is wrong with the fields of a vocabulary.json, or ""."""
    if fields.get("kind") != "integers":
        return f'"kind" must be "integers", not {fields.get("kind")!r}'
    if unknown := sorted(fields.keys() - _FIELDS):
        return f'unknown key "{unknown[0]}" (known: {", ".join(sorted(_FIELDS))})'
    size, special, symbols = fields.get("vocab_size"), fields.get("special"), fields.get("symbols", [])
    if type(size) is not int or not 1 <= size <= _LARGEST:
        return f'"vocab_size" must be a number from 1 on, not {size!r}'
    if not isinstance(special, dict):
        return '"special" must give ids to roles, as in {"eod": 24}'
    if (
        not isinstance(symbols, list)
        or not all(isinstance(s, str) and s and not SURROGATE.search(s) for s in symbols)
        or len(symbols) > size
    ):
        return f'"symbols" must be a list of at most {size} strings of Unicode, none of them empty'
    for role, token_id in special.items():
        if role not in ROLES:
            return f'"special": unknown role "{role}" (known: {", ".join(ROLES)})'
        if type(token_id) is not int or not 0 <= token_id < size:
            return f'"special": {role} must be an id in [0, {size}), not {token_id!r}'
    apart = [i for role, i in special.items() if role != "eod" or i != special.get("sep")]
    if len(set(apart)) < len(apart):
        return '"special": two roles have the same id (only sep and eod may share one)'
    return ""
