"""Any Hugging Face fast tokenizer, from its tokenizer.json alone.

Read for preparing a corpus, not for inference, so some of what the file says is set aside:

- Special tokens are found by their usual names (`NAMES`). Every token marked special is reserved.
- The characters of a special token in a *text* are ordinary text. The `tokenizers` library can leave them
  unmatched, but a unigram or whole-word model would still find them in its vocabulary: so in our copy of the
  model they get names that no text has.
- Truncation, padding and dropout are switched off; nothing is added around a text.

Lossless is what the tokenizer makes lossless: byte-level BPE is, WordPiece and most unigram models are not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.tokenizer.interface import Bools, Encoding, Tokenizer, check_unicode, checked_ids, parse_json

if TYPE_CHECKING:
    import tokenizers

NAMES: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>", "<eos>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "eod": (
        *("<|endoftext|>", "<|end_of_text|>", "<|endofdoc|>", "<eod>", "[EOD]"),
        *("<eos>", "[EOS]", "</s>", "[SEP]", "<sep>"),
    ),
}
"""What the special tokens of each role are called; the first that the vocabulary has is taken."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_BOUNDARY = "\u2581"


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json behind our interface. A word in WordPiece is what has no "##"."""

    file_name = "tokenizer.json"

    def __init__(self, content: bytes, path: Path) -> None:
        """Read a tokenizer.json.

        Raises:
            DataError: no such file, or the `tokenizers` library is missing.
        """
        fields = parse_json(content, path)
        try:
            self._names = _names(fields)
            added = {
                entry["content"]: int(entry["id"]) for entry in fields["added_tokens"] if entry["special"]
            }
            ids = {name: i for i, name in self._names.items()}
            special = _roles(ids, fields["model"])
            if special.get("unk") not in {None, *self._names}:
                raise ValueError(f"unk_id {special['unk']}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: not a Hugging Face tokenizer.json ({error!r} in it)") from error
        super().__init__(content, path, max(self._names, default=0) + 1, special, added.values())
        self._fields = fields
        self._library = _open(fields, [self._names[i] for i in self.reserved_ids], path)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """See `Tokenizer.encode_batch`."""
        encodings = self._encoded(self._library.encode_batch_fast, texts)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_with_spans(self, texts: Sequence[str]) -> list[Encoding]:
        """See `Tokenizer.encode_with_spans`."""
        return [
            Encoding(np.asarray(e.ids, np.int32), np.array(e.offsets, np.int64).reshape(-1, 2))
            for e in self._encoded(self._library.encode_batch, texts)
        ]

    def _encoded(self, encode: Callable[..., list[Any]], texts: Sequence[str]) -> list[Any]:
        try:
            return encode(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            check_unicode(texts)
            raise DataError(f"{self.path}: cannot encode: {error}") from error

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """See `Tokenizer.decode`."""
        plain = [i for i in checked_ids(self, ids) if not self._is_reserved[i]]
        text: str = self._library.decode(plain, skip_special_tokens=False)
        return text

    def id_to_piece(self, token_id: int) -> str:
        """Piece of an id as the file spells it; "" for an id between two that exist."""
        return self._names.get(token_id, "")

    def _looked_for(self, missing: Sequence[str]) -> str:
        return "".join(f" ({role}: one of {' '.join(NAMES[role])})" for role in missing)

    @cached_property
    def is_word_start(self) -> Bools:
        """See `Tokenizer.is_word_start`; where pieces say nothing about words, each is one."""
        if prefix := self._affix("continuing_subword_prefix"):
            return self._mask(lambda i: not self.id_to_piece(i).startswith(prefix), special=True)
        if self._affix("end_of_word_suffix"):
            return self._mask(lambda _: False, special=True)
        if not self._has_spaces:
            return self._mask(lambda _: True, special=True)
        return self._mask(lambda i: self._text(i)[:1].isspace(), special=True)

    @cached_property
    def is_word_end(self) -> Bools:
        """See `Tokenizer.is_word_end`."""
        if self._affix("continuing_subword_prefix"):
            return self._mask(lambda _: False, special=True)
        if suffix := self._affix("end_of_word_suffix"):
            return self._mask(lambda i: self.id_to_piece(i).endswith(suffix), special=True)
        return self._mask(lambda i: self._text(i)[-1:].isspace(), special=True)

    @cached_property
    def is_byte(self) -> Bools:
        """See `Tokenizer.is_byte`: byte pieces, and byte-level ones that do not hold whole characters."""
        if self._is_byte_level:
            return self._mask(lambda i: "\ufffd" in self._text(i), special=False)
        return self._mask(lambda i: _BYTE_PIECE.fullmatch(self.id_to_piece(i)) is not None, special=False)

    def _text(self, token_id: int) -> str:
        """The characters of a piece; U+FFFD for a part of one."""
        piece = self.id_to_piece(token_id)
        if self._is_byte_level:
            if all(character in _BYTE_OF for character in piece):
                return bytes(_BYTE_OF[character] for character in piece).decode("utf-8", "replace")
            return piece  # an added token, spelled as it is
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)]).decode("utf-8", "replace")
        return piece.replace(_BOUNDARY, " ")

    def _affix(self, name: str) -> str:
        return self._fields["model"].get(name) or ""

    @cached_property
    def _is_byte_level(self) -> bool:
        parts = (self._fields.get("pre_tokenizer"), self._fields.get("decoder"))
        return any(kind == "ByteLevel" for part in parts for kind in _types(part))

    @cached_property
    def _has_spaces(self) -> bool:
        """Whether white space stands in pieces, so that they tell where words begin."""
        ordinary = (i for i in self._names if i not in self.special_ids)
        return any(len(text := self._text(i)) > 1 and text[0].isspace() for i in ordinary)


def _names(fields: Mapping[str, Any]) -> dict[int, str]:
    """Piece of every id, added tokens included."""
    vocabulary = fields["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram: [piece, score] by id
        names = {i: str(piece) for i, (piece, _) in enumerate(vocabulary)}
    else:
        names = {int(i): str(piece) for piece, i in vocabulary.items()}
    return names | {int(entry["id"]): str(entry["content"]) for entry in fields["added_tokens"]}


def _roles(ids: Mapping[str, int], model: Mapping[str, Any]) -> dict[str, int]:
    """The id of each role that the vocabulary has; unk is what the model itself falls back to."""
    special = {
        role: next(ids[name] for name in names if name in ids)
        for role, names in NAMES.items()
        if any(name in ids for name in names)
    }
    falls_back = (
        model.get("unk_id") if model.get("unk_id") is not None else ids.get(model.get("unk_token") or "")
    )
    if falls_back is not None:
        special["unk"] = falls_back
    if any(special.get("unk") == i for role, i in special.items() if role != "unk"):
        del special["unk"]  # GPT-2 calls its end of text unknown too; in a document it must not stand
    return special


def _open(fields: Mapping[str, Any], reserved: Sequence[str], path: Path) -> tokenizers.Tokenizer:
    """The library's object: texts only, deterministic, the reserved tokens out of reach.

    Raises:
        DataError: the library is missing or refuses the file.
    """
    try:
        from tokenizers import Tokenizer as LibraryTokenizer
    except ImportError as error:
        raise DataError(f"{path}: reading it needs `tokenizers`: pip install 'headwater[hf]'") from error
    # One thread unless the user says otherwise: each worker process would start as many as there are cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hidden = {name: f"\ufdd0{index}\ufdd1" for index, name in enumerate(reserved)}
    off = {"truncation": None, "padding": None, "post_processor": None}
    try:
        added = [
            entry | {"content": hidden.get(entry["content"], entry["content"])}
            for entry in fields["added_tokens"]
        ]
        changed = {**fields, **off, "added_tokens": added, "model": _hide(fields["model"], hidden)}
        library = LibraryTokenizer.from_str(json.dumps(changed))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path}: `tokenizers` cannot read it: {error}") from error
    library.encode_special_tokens = True  # do not look for special tokens in texts
    return library


def _hide(model: Mapping[str, Any], hidden: Mapping[str, str]) -> dict[str, Any]:
    """The model with other names for some pieces, ids and scores unchanged; without dropout."""
    vocabulary = model["vocab"]
    changed = {**model}
    if isinstance(vocabulary, list):
        changed["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocabulary]
    else:
        changed["vocab"] = {hidden.get(piece, piece): i for piece, i in vocabulary.items()}
    if "dropout" in model:
        changed["dropout"] = None
    if model.get("unk_token") in hidden:
        changed["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        changed["merges"] = [pair for pair in pairs if "".join(pair) not in hidden]
    return changed


def _types(part: Any) -> Iterator[str]:
    """The types of a pre-tokenizer or decoder and of those inside it."""
    if isinstance(part, dict):
        yield str(part.get("type"))
        part = [*part.values()]
    if isinstance(part, list):
        for inner in part:
            yield from _types(inner)


def _byte_alphabet() -> dict[str, int]:
    """The byte of each character of byte-level pieces (GPT-2's encoder.py: printable ones are themselves)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
