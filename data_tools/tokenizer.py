"""The tokenizer: a lossless sentencepiece model with fixed special ids.

Every model that `data_tools.train_tokenizer` makes has the same first ids (`SPECIAL_PIECES`), keeps
white space and newlines, and falls back to bytes, so `decode(encode(text)) == text` for any text.

Special pieces are *control* symbols: they have an id, but no text ever encodes to it. A document that
contains the characters "[MASK]" becomes ordinary pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_tools.errors import DataError

PAD, UNK, CLS, SEP, MASK, EOD = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>"
SPECIAL_PIECES: tuple[str, ...] = (PAD, UNK, CLS, SEP, MASK, EOD)
"""Piece of each special id: the id is the position in this tuple."""

WORD_BOUNDARY = "\u2581"
"""Sentencepiece's stand-in for a space inside a piece."""


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        path: the model file.
        sha256: hex digest of the model file; shards and checkpoints record it.
        vocab_size: number of ids, special ids included.
        pad_id, unk_id, cls_id, sep_id, mask_id, eod_id: the special ids 0..5.
    """

    pad_id, unk_id, cls_id, sep_id, mask_id, eod_id = range(len(SPECIAL_PIECES))

    def __init__(self, model: bytes, path: Path) -> None:
        """Wrap a serialized model; use `Tokenizer.load` for a file.

        Raises:
            DataError: the bytes are no sentencepiece model, or one without Headwater's special ids.
        """
        self.path = path
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not a sentencepiece model ({_first_line(error)})") from error
        self.vocab_size: int = self._processor.vocab_size()
        found = tuple(
            self._processor.id_to_piece(i) for i in range(min(len(SPECIAL_PIECES), self.vocab_size))
        )
        if found != SPECIAL_PIECES:
            raise DataError(
                f"{path}: the first ids are {list(found)}, expected {list(SPECIAL_PIECES)}; "
                "train the model with `headwater data tokenizer`"
            )
        boundary_bytes = (f"<0x{byte:02X}>" for byte in WORD_BOUNDARY.encode())
        self._boundary_ids: list[int] = [self._processor.piece_to_id(piece) for piece in boundary_bytes]

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a model file.

        Raises:
            DataError: the file cannot be read or is not one of ours.
        """
        path = Path(path)
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        return cls(model, path)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; no special id is added.

        Raises:
            DataError: the text holds a lone surrogate, which no UTF-8 can store.
        """
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of each text, in one thread: parallelism belongs to the caller's processes.

        Returns:
            One int32 array per text.

        Raises:
            DataError: as `encode`.
        """
        try:
            arrays: list[npt.NDArray[np.int32]] = self._processor.encode_as_numpy(list(texts), num_threads=1)
        except (RuntimeError, TypeError) as error:
            for text in texts:
                _check_unicode(text)
            raise DataError(f"{self.path}: cannot encode ({_first_line(error)})") from error
        for index, text in enumerate(texts):
            if WORD_BOUNDARY in text:
                arrays[index] = self._encode_with_boundary(text)
        return arrays

    def _encode_with_boundary(self, text: str) -> npt.NDArray[np.int32]:
        """Encode a text that holds U+2581 itself, which sentencepiece would turn into a space."""
        ids: list[int] = []
        for index, part in enumerate(text.split(WORD_BOUNDARY)):
            if index:
                ids += self._boundary_ids
            ids += self._processor.encode(part, num_threads=1)
        return np.asarray(ids, dtype=np.int32)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Text of some ids; special ids decode to nothing, [UNK] to sentencepiece's mark for it.

        Raises:
            DataError: an id lies outside the vocabulary.
        """
        plain = [int(i) for i in ids]
        wrong = next((i for i in plain if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise DataError(f"token id {wrong} is outside the vocabulary of {self.vocab_size} ({self.path})")
        text: str = self._processor.decode(plain)
        return text

    def id_to_piece(self, token_id: int) -> str:
        """Piece of an id, with U+2581 for a space."""
        piece: str = self._processor.id_to_piece(token_id)
        return piece

    @cached_property
    def is_word_start(self) -> npt.NDArray[np.bool_]:
        """[vocab_size] True where the piece begins a new word: a leading space, a newline, a special id.

        Trap: the first token of a text has no leading space, nor has a word after a newline or an
        indent; combine with `is_word_end` of the token before:
        `start[i] = i == 0 or is_word_start[t[i]] or is_word_end[t[i - 1]]`.
        """
        starts = (WORD_BOUNDARY, "\n", "\t")
        return self._piece_mask(lambda piece: piece.startswith(starts))

    @cached_property
    def is_word_end(self) -> npt.NDArray[np.bool_]:
        """[vocab_size] True where whatever follows begins a new word: white space only, or a special id."""
        return self._piece_mask(lambda piece: not piece.strip(WORD_BOUNDARY + "\n\t"))

    def _piece_mask(self, holds: Callable[[str], bool]) -> npt.NDArray[np.bool_]:
        mask = np.fromiter(
            (holds(self.id_to_piece(i)) for i in range(self.vocab_size)), np.bool_, self.vocab_size
        )
        mask[: len(SPECIAL_PIECES)] = True
        mask.flags.writeable = False
        return mask


def _check_unicode(text: str) -> None:
    """Raise a DataError that shows where a text cannot be stored as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"text is not valid Unicode: lone surrogate at character {error.start}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
