"""Our own tokenizer: a lossless sentencepiece model with fixed special ids.

Every model that `data_tools.train_tokenizer` makes has the same first ids (`SPECIAL_PIECES`), keeps
white space and newlines, and (by default) falls back to bytes, so `decode(encode(text)) == text`.

Special pieces are *control* symbols: they have an id, but no text ever encodes to it. A document that
contains the characters "[MASK]" becomes ordinary pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_tools.errors import DataError
from data_tools.tokenizer.interface import ROLES, Bools, Encoding, Tokenizer, check_unicode, checked_ids
from data_tools.tokenizer.segments import SEPARATOR, Ids, SegmentEncoder, cut_table, is_compiled

PAD, UNK, CLS, SEP, MASK, EOD = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>"
SPECIAL_PIECES: tuple[str, ...] = (PAD, UNK, CLS, SEP, MASK, EOD)
"""Piece of each special id: the id is the position in this tuple; the roles are those of `ROLES`."""

WORD_BOUNDARY = "\u2581"
"""Sentencepiece's stand-in for a space inside a piece."""

_UNKNOWN = "\U0010ffff"
"""A character that no vocabulary has: what U+2581 becomes where it cannot be spelled in bytes."""


class SentencePieceTokenizer(Tokenizer):
    """A model of `headwater data tokenizer`.

    Attributes:
        byte_fallback: characters without a piece are spelled in bytes; else they become `unk_id`.
    """

    file_name = "tokenizer.model"
    special = dict(zip(ROLES, range(len(ROLES)), strict=True))

    def __init__(self, model: bytes, path: Path) -> None:
        """Wrap a serialized model.

        Raises:
            DataError: the bytes are no sentencepiece model, or one without Headwater's special ids.
        """
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not a sentencepiece model ({_first_line(error)})") from error
        vocab_size: int = self._processor.vocab_size()
        super().__init__(model, path, vocab_size, self.special)
        found = tuple(self._processor.id_to_piece(i) for i in range(min(len(SPECIAL_PIECES), vocab_size)))
        if found != SPECIAL_PIECES:
            raise DataError(
                f"{path}: the first ids are {list(found)}, expected {list(SPECIAL_PIECES)}; train the model "
                "with `headwater data tokenizer`, or use the tokenizer.json that belongs to it"
            )
        boundary_bytes = (f"<0x{byte:02X}>" for byte in WORD_BOUNDARY.encode())
        self._boundary_ids: list[int] = [self._processor.piece_to_id(piece) for piece in boundary_bytes]
        self.byte_fallback = self.unk_id not in self._boundary_ids

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """See `Tokenizer.encode_batch`."""
        try:
            arrays = self._encode_plain(["" if WORD_BOUNDARY in text else text for text in texts])
        except (RuntimeError, TypeError, UnicodeEncodeError) as error:
            check_unicode(texts)
            raise DataError(f"{self.path}: cannot encode ({_first_line(error)})") from error
        for index, text in enumerate(texts):
            if WORD_BOUNDARY in text:
                arrays[index] = self._encode_with_boundary(text)
        return arrays

    def encode_utf8(self, texts: Sequence[bytes]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """See `Tokenizer.encode_utf8`."""
        joined = SEPARATOR.join(texts)
        if self._segments is None or not texts or WORD_BOUNDARY.encode() in joined:
            return super().encode_utf8(texts)
        return self._segments.encode_joined(joined)

    def _encode_plain(self, texts: list[str]) -> list[Ids]:
        """Encode texts without U+2581."""
        if self._segments is not None:
            return self._segments.encode([text.encode() for text in texts])
        arrays: list[Ids] = self._processor.encode_as_numpy(texts, num_threads=1)
        return arrays

    @cached_property
    def _segments(self) -> SegmentEncoder | None:
        """Encodes faster, where the model is of the kind that can be cut into segments."""
        cuts = cut_table(self._processor.serialized_model_proto()) if is_compiled() else None
        return SegmentEncoder(self._processor, cuts) if cuts is not None else None

    def _encode_with_boundary(self, text: str) -> Ids:
        """Encode a text that holds U+2581 itself, which sentencepiece would turn into a space."""
        if not self.byte_fallback:
            return self.encode_batch([text.replace(WORD_BOUNDARY, _UNKNOWN)])[0]
        ids: list[int] = []
        for index, part in enumerate(text.split(WORD_BOUNDARY)):
            if index:
                ids += self._boundary_ids
            ids += self._processor.encode(part, num_threads=1)
        return np.asarray(ids, dtype=np.int32)

    def encode_with_spans(self, texts: Sequence[str]) -> list[Encoding]:
        """See `Tokenizer.encode_with_spans`."""
        encodings = []
        for text, ids in zip(texts, self.encode_batch(texts), strict=True):
            parts = (
                text.split(WORD_BOUNDARY) if self.byte_fallback else [text.replace(WORD_BOUNDARY, _UNKNOWN)]
            )
            found = self._processor.encode(parts, return_type="offset_mapping", num_threads=1)
            spans: list[tuple[int, int]] = []
            first = 0
            for index, (part, mapping) in enumerate(zip(parts, found, strict=True)):
                if index:
                    spans += [(first, first + 1)] * len(self._boundary_ids)
                    first += 1
                # All but the last byte of a character come with an empty span.
                spans += [(first + begin, first + max(end, begin + 1)) for begin, end in mapping["offsets"]]
                first += len(part)
            encodings.append(Encoding(ids, np.array(spans, np.int64).reshape(-1, 2)))
        return encodings

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """See `Tokenizer.decode`."""
        text: str = self._processor.decode(checked_ids(self, ids))
        return text

    def id_to_piece(self, token_id: int) -> str:
        """Piece of an id, with U+2581 for a space."""
        piece: str = self._processor.id_to_piece(token_id)
        return piece

    @cached_property
    def is_word_start(self) -> Bools:
        """See `Tokenizer.is_word_start`."""
        starts = (WORD_BOUNDARY, "\n", "\t")
        return self._mask(lambda i: self.id_to_piece(i).startswith(starts), special=True)

    @cached_property
    def is_word_end(self) -> Bools:
        """See `Tokenizer.is_word_end`; in our models only pieces of nothing but white space end with it."""
        return self._mask(lambda i: not self.id_to_piece(i).strip(WORD_BOUNDARY + "\n\t"), special=True)

    @cached_property
    def is_byte(self) -> Bools:
        """See `Tokenizer.is_byte`."""
        return self._mask(self._processor.is_byte, special=False)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
