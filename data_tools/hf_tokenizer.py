"""A Hugging Face fast tokenizer that gives the ids of ours.

How the conversion of a sentencepiece model becomes exact, where the usual converters are not:

- Pieces are stored with real spaces instead of U+2581, and nothing is normalised. So a U+2581 in the text
  is an ordinary unknown character, spelled in bytes, as `data_tools.tokenizer` does it.
- Hugging Face matches *every* entry of a unigram vocabulary in the text; sentencepiece matches neither
  control nor byte pieces. Those get a score so low that spelling the same characters always wins; and a
  character in them that has no piece, which would cost even more, cuts the text before anything is matched.
- sentencepiece adds scores in float32, Hugging Face in float64. Where two segmentations of a text score the
  same, rounding decides, unless the scores are multiples of 1/64 (`has_exact_scores`).

A tokenizer.json is its own conversion; what is added is the file that tells transformers its special tokens.

Special tokens in the *text*: Hugging Face tokenizers read the characters "[MASK]" as the special id, which is
what fill-mask users want; our own tokenizer reads them as ordinary text. `tokenizer(text,
split_special_tokens=True)` does as ours. Only the special tokens that the model kind uses are registered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from data_tools.errors import DataError
from data_tools.tokenizer import (
    CLS,
    SEP,
    UNK,
    WORD_BOUNDARY,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)

if TYPE_CHECKING:
    import tokenizers

ModelKind = Literal["gpt", "bert"]

_UNIGRAM, _BPE = 1, 2  # sentencepiece's TrainerSpec.ModelType
_NORMAL, _USER_DEFINED = 1, 4  # sentencepiece's SentencePiece.Type: the pieces that text can become

SPECIAL_TOKENS: dict[ModelKind, dict[str, str]] = {
    "gpt": {"bos_token": "eod", "eos_token": "eod", "unk_token": "unk", "pad_token": "pad"},
    "bert": {f"{role}_token": role for role in ("cls", "sep", "mask", "unk", "pad")},
}
"""What transformers calls the special tokens that a kind of model uses, and their role here."""

INPUT_NAMES: dict[ModelKind, list[str]] = {
    "gpt": ["input_ids", "attention_mask"],
    "bert": ["input_ids", "token_type_ids", "attention_mask"],
}

SCORE_UNIT = 64
"""Piece scores that are multiples of 1/64 add up without rounding in float32 (sentencepiece >= 0.2.3)."""

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n\treturn  x +   1\n\n\n    # done\r\n",
    "  leading, trailing  \t \n ",
    "caf\u00e9 cafe\u0301 \u65e5\u672c\u8a9e \u0645\u0631\u062d\u0628\u0627 \U0001f917\u200d\U0001f680",
    "\u2581\u2581 a \u2581b\u2581 \x00\x01\x7f \ufeff\ufffd\u2028",
    "[MASK] <0x0A> [UNK][CLS] <|endoftext|> [PAD]",
    "x" * 50 + " " * 37 + "-" * 71,
    "",
)
"""Texts on which every converted tokenizer is compared with its original."""


class Compared(NamedTuple):
    """How much was compared; bytes of UTF-8."""

    documents: int
    bytes: int
    tokens: int


def write_hf_files(original: Tokenizer, kind: ModelKind, max_length: int | None, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `directory`.

    Args:
        original: A sentencepiece model of ours, or a tokenizer.json, whose special tokens and post-processor
            stay as they are.
        kind: Of a sentencepiece model, BERT adds [CLS] A [SEP] B [SEP] and token types; GPT adds nothing.
        max_length: Longest input of the model, in tokens; None leaves it open.
        directory: Exists already.

    Raises:
        DataError: A vocabulary of integers, or a model that has no counterpart.
    """
    if isinstance(original, SentencePieceTokenizer):
        build_fast_tokenizer(original, kind).save(str(directory / "tokenizer.json"))
        # Kept beside it, so that `headwater import` gets the original back.
        (directory / original.file_name).write_bytes(original.path.read_bytes())
    elif isinstance(original, HuggingFaceTokenizer):
        (directory / "tokenizer.json").write_bytes(original.path.read_bytes())
    else:
        raise DataError(
            f"{original.path}: a vocabulary of integers has no text, so no Hugging Face tokenizer"
        )
    special = special_tokens(original, kind)
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "model_input_names": INPUT_NAMES[kind],
        "tokenizer_class": "PreTrainedTokenizerFast",  # versions 4 and 5 of transformers know it
        **special,
    }
    if max_length is not None:
        config["model_max_length"] = max_length
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", special)


def special_tokens(original: Tokenizer, kind: ModelKind) -> dict[str, str]:
    """The special tokens that a kind of model uses, by their names in transformers."""
    ids = {name: getattr(original, f"{role}_id") for name, role in SPECIAL_TOKENS[kind].items()}
    return {name: original.id_to_piece(i) for name, i in ids.items() if i is not None}


def build_fast_tokenizer(original: SentencePieceTokenizer, kind: ModelKind) -> tokenizers.Tokenizer:
    """The `tokenizers` object for one of our sentencepiece models.

    Raises:
        DataError: A model type that has no counterpart, or one that normalises its text.
    """
    from tokenizers import AddedToken, Regex, decoders, pre_tokenizers, processors
    from tokenizers import Tokenizer as FastTokenizer

    proto = read_model(original)
    model_type = proto.trainer_spec.model_type
    if model_type not in (_UNIGRAM, _BPE):
        raise DataError(f"{original.path}: only unigram and bpe models can become Hugging Face tokenizers")
    byte_fallback = original.byte_fallback
    fast = FastTokenizer(
        _unigram(proto, byte_fallback) if model_type == _UNIGRAM else _bpe(proto, byte_fallback)
    )
    unspelled = _unspelled_characters(proto)
    if unspelled:
        cut = Regex(f"[{''.join(re.escape(c) for c in unspelled)}]")
        fast.pre_tokenizer = pre_tokenizers.Split(cut, "isolated")
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if (
        model_type == _BPE
    ):  # sentencepiece takes them whole, and first; in a unigram model their score does it
        symbols = [p.piece for p in proto.pieces if p.type == _USER_DEFINED and len(p.piece) > 1]
        fast.add_tokens([AddedToken(symbol, normalized=False, special=False) for symbol in symbols])
    special = sorted(set(special_tokens(original, kind).values()))
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if kind == "bert":
        cls_id, sep_id = original.require("cls", "sep", purpose="BERT")
        fast.post_processor = processors.TemplateProcessing(
            single=f"{CLS}:0 $A:0 {SEP}:0",
            pair=f"{CLS}:0 $A:0 {SEP}:0 $B:1 {SEP}:1",
            special_tokens=[(CLS, cls_id), (SEP, sep_id)],
        )
    return fast


def prove_same_ids(original: Tokenizer, directory: Path, texts: Iterable[str]) -> Compared:
    """Load the written tokenizer.json and compare ids and decoded texts with the original's.

    Returns:
        How much was compared.

    Raises:
        DataError: A text differs; shows where.
    """
    from tokenizers import Tokenizer as FastTokenizer

    fast = FastTokenizer.from_file(str(directory / "tokenizer.json"))
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    documents = size = tokens = 0
    for text in texts:
        ids = original.encode(text)
        theirs = fast.encode(text, add_special_tokens=False).ids
        whole = original.unk_id not in ids  # each side has its own mark for what is unknown
        if ids != theirs or (whole and fast.decode(ids, skip_special_tokens=False) != original.decode(ids)):
            raise DataError(f"{original.path}: {_difference(original, ids, theirs)}; nothing was written")
        documents, size, tokens = documents + 1, size + len(text.encode()), tokens + len(ids)
    return Compared(documents, size, tokens)


def _difference(original: Tokenizer, ids: list[int], theirs: list[int]) -> str:
    """Where two encodings of a text part, with the text there."""
    if ids == theirs:
        return f"the Hugging Face tokenizer decodes its ids to another text: {original.decode(ids)[:200]!r}"
    at = next(
        (i for i, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), min(len(ids), len(theirs))
    )
    before, after = (original.decode(part) for part in (ids[max(0, at - 10) : at], ids[at : at + 10]))
    return (
        f"the Hugging Face tokenizer gives other ids from token {at} on, after {before!r}, for {after!r}: "
        f"{theirs[at : at + 5]}, not {ids[at : at + 5]}"
    )


def has_exact_scores(original: SentencePieceTokenizer) -> bool:
    """Whether sums of piece scores are free of rounding, so that Hugging Face cuts every text alike."""
    proto = read_model(original)
    if proto.trainer_spec.model_type != _UNIGRAM:
        return True  # merges are ranked, not summed
    # sentencepiece replaces the scores of user-defined pieces by ones that are not exact.
    pieces = [p for p in proto.pieces if p.type in (_NORMAL, _USER_DEFINED)]
    return all(p.type == _NORMAL and (p.score * SCORE_UNIT).is_integer() for p in pieces)


def read_model(original: SentencePieceTokenizer) -> Any:
    """The parsed model.

    Raises:
        DataError: It normalises its text, which no counterpart would do alike.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(original.path.read_bytes())
    rules = proto.normalizer_spec
    if rules.name != "identity" or rules.add_dummy_prefix or rules.remove_extra_whitespaces:
        raise DataError(
            f"{original.path}: changes text before encoding; train it with `headwater data tokenizer`"
        )
    return proto


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _text_pieces(proto: Any) -> dict[str, float]:
    """Pieces that text can become, with spaces as spaces, and their scores."""
    return {_spell(p): p.score for p in proto.pieces if p.type in (_NORMAL, _USER_DEFINED)}


def _unspelled_characters(proto: Any) -> list[str]:
    """Characters of control and byte pieces that no text piece holds; they are spelled in bytes."""
    spelled = {character for piece in _text_pieces(proto) for character in piece}
    others = {c for p in proto.pieces if p.type not in (_NORMAL, _USER_DEFINED) for c in p.piece}
    return sorted(others - spelled)


def _spell(piece: Any) -> str:
    spelled: str = piece.piece.replace(WORD_BOUNDARY, " ")
    return spelled


def _unigram(proto: Any, byte_fallback: bool) -> tokenizers.models.Unigram:
    from tokenizers.models import Unigram

    scores = _text_pieces(proto)
    # Below any spelling of the longest such piece in other pieces.
    never = min(scores.values()) * max(len(p.piece) for p in proto.pieces) - 100.0
    vocabulary = [
        (_spell(p), p.score) if p.type in (_NORMAL, _USER_DEFINED) else (p.piece, never) for p in proto.pieces
    ]
    return Unigram(vocabulary, unk_id=SentencePieceTokenizer.special["unk"], byte_fallback=byte_fallback)


def _bpe(proto: Any, byte_fallback: bool) -> tokenizers.models.BPE:
    """Every way to split a piece into two others is a merge; a better score merges earlier."""
    from tokenizers.models import BPE

    scores = {_spell(p): p.score for p in proto.pieces if p.type == _NORMAL}
    by_rank = sorted((p for p in scores if len(p) > 1), key=lambda p: -scores[p])
    merges = [
        (piece[:cut], piece[cut:])
        for piece in by_rank
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    vocabulary = {
        _spell(p) if p.type in (_NORMAL, _USER_DEFINED) else p.piece: i for i, p in enumerate(proto.pieces)
    }
    return BPE(vocabulary, merges, unk_token=UNK, fuse_unk=True, byte_fallback=byte_fallback)
