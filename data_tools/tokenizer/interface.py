"""What every kind of tokenizer offers."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError

FILE_NAMES: tuple[str, ...] = ("tokenizer.model", "tokenizer.json", "vocabulary.json")
"""What the file of each kind is called in a corpus and in a checkpoint."""

ROLES: tuple[str, ...] = ("pad", "unk", "cls", "sep", "mask", "eod")
"""What special ids are for; eod ends every stored document."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""What a string holds that is not Unicode: bytes of a command line that are not UTF-8, too."""

Bools = npt.NDArray[np.bool_]


class Encoding(NamedTuple):
    """Ids of a text and where each of them stands in it.

    Attributes:
        ids: [n] int32.
        spans: [n, 2] int64: first character of each token, and the one behind its last. Pieces that are bytes
            of one character all have the span of that character.
    """

    ids: npt.NDArray[np.int32]
    spans: npt.NDArray[np.int64]


class Tokenizer(ABC):
    """Text to token ids and back. Text is always only text: what it holds never becomes a special id.

    Attributes:
        file_name: what the file is called in a corpus and in a checkpoint.
        path: the file.
        sha256: hex digest of the file; shards and checkpoints record it.
        vocab_size: number of ids, special ids included.
        pad_id, unk_id, cls_id, sep_id, mask_id, eod_id: special ids; None where the vocabulary has none.
        reserved_ids: the ids that never stand inside a document: all special ones but `unk_id`.
        special_ids: `reserved_ids` and `unk_id`.
    """

    file_name: ClassVar[str]

    def __init__(
        self,
        content: bytes,
        path: Path,
        vocab_size: int,
        special: Mapping[str, int],
        reserved: Iterable[int] = (),
    ) -> None:
        """Store what all kinds have.

        Args:
            content: the file.
            path: where it was read.
            vocab_size: number of ids.
            special: the id of each role of `ROLES` that the vocabulary has.
            reserved: special ids without a role.
        """
        self.path = path
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size = vocab_size
        found = [special.get(role) for role in ROLES]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id, self.eod_id = found
        self.special_ids: tuple[int, ...] = tuple(sorted({*special.values(), *reserved}))
        self.reserved_ids = tuple(i for i in self.special_ids if i != self.unk_id)

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of each text, in one thread: parallelism belongs to the caller's processes.

        Returns:
            One int32 array per text; no special id is added.

        Raises:
            DataError: a text holds a lone surrogate, which no UTF-8 can store, or the kind knows no text.
        """

    def encode_utf8(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Ids of texts in valid UTF-8, one after the other, and [len(texts)] how many each has."""
        arrays = self.encode_batch([text.decode() for text in texts])
        lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
        return np.concatenate([np.empty(0, np.int32), *arrays]), lengths

    @abstractmethod
    def encode_with_spans(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode_batch`, with the characters that each id stands for.

        Raises:
            DataError: as `encode_batch`.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Text of some ids; reserved ids decode to nothing, `unk_id` to a mark.

        Raises:
            DataError: an id lies outside the vocabulary.
        """

    @abstractmethod
    def id_to_piece(self, token_id: int) -> str:
        """Piece of an id as the vocabulary spells it."""

    @property
    @abstractmethod
    def is_word_start(self) -> Bools:
        """[vocab_size] True where the piece begins a new word: leading white space, or a special id.

        Trap: the first token of a text has no leading space, nor has a word after a newline or an
        indent; combine with `is_word_end` of the token before:
        `start[i] = i == 0 or is_word_start[t[i]] or is_word_end[t[i - 1]]`.
        """

    @property
    @abstractmethod
    def is_word_end(self) -> Bools:
        """[vocab_size] True where whatever follows begins a new word: trailing white space, or special."""

    @property
    @abstractmethod
    def is_byte(self) -> Bools:
        """[vocab_size] True where the piece is only a part of a character."""

    def encode(self, text: str) -> list[int]:
        """Ids of one text, as `encode_batch`."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def require(self, *roles: str, purpose: str) -> tuple[int, ...]:
        """The special ids that something cannot do without.

        Args:
            roles: of `ROLES`.
            purpose: what needs them, for the message.

        Raises:
            DataError: names all that are missing.
        """
        found = {role: getattr(self, f"{role}_id") for role in roles}
        missing = [role for role, token_id in found.items() if token_id is None]
        if missing:
            raise DataError(
                f"{purpose} needs the special ids {', '.join(roles)}; the vocabulary of {self.path} has no "
                f"{' and no '.join(missing)}{self._looked_for(missing)}"
            )
        return tuple(found.values())

    def _looked_for(self, missing: Sequence[str]) -> str:
        """Where the special ids of these roles would have been found, to end a message."""
        del missing
        return ""

    def why_foreign(self, tokens: npt.NDArray[np.integer]) -> str:
        """Why ids cannot stand in a document of this vocabulary, or "" if they can."""
        if len(tokens) and not 0 <= (wrong := int(_farthest(tokens, self.vocab_size))) < self.vocab_size:
            return f"token {wrong} is outside the vocabulary of {self.vocab_size}"
        reserved = self._is_reserved[tokens]
        if reserved.any():
            at = int(reserved.argmax())
            return f"token {int(tokens[at])} at position {at} is a special id"
        return ""

    @cached_property
    def _is_reserved(self) -> Bools:
        mask = np.zeros(self.vocab_size, np.bool_)
        mask[list(self.reserved_ids)] = True
        return mask

    def _mask(self, holds: Callable[[int], bool], special: bool) -> Bools:
        """[vocab_size] of a condition on the id, read-only; special ids get `special`."""
        mask = np.fromiter((holds(i) for i in range(self.vocab_size)), np.bool_, self.vocab_size)
        mask[list(self.special_ids)] = special
        mask.flags.writeable = False
        return mask


def checked_ids(tokenizer: Tokenizer, ids: Sequence[int] | npt.NDArray[np.integer]) -> list[int]:
    """The ids as a list.

    Raises:
        DataError: one lies outside the vocabulary.
    """
    plain = [int(i) for i in ids]
    size = tokenizer.vocab_size
    wrong = next((i for i in plain if not 0 <= i < size), None)
    if wrong is not None:
        raise DataError(f"token id {wrong} is outside the vocabulary of {size} ({tokenizer.path})")
    return plain


def check_unicode(texts: Iterable[str], place: str = "text") -> None:
    """Raise a DataError, beginning with `place`, that shows where a text cannot be stored as UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place} is not valid Unicode: lone surrogate at character {error.start}"
            ) from error


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: it holds none.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path}: not a JSON object but {type(fields).__name__}")
    return fields


def _farthest(tokens: npt.NDArray[np.integer], vocab_size: int) -> int:
    """The token that is most outside of the vocabulary, if one is."""
    largest = int(tokens.max())
    return largest if largest >= vocab_size else int(tokens.min())
