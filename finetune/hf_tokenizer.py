"""A Hugging Face fast tokenizer that gives the ids of our sentencepiece model.

How it becomes exact, where the usual converters are not:

- Pieces are stored with real spaces instead of U+2581, and nothing is normalised. So a U+2581 in the text
  is an ordinary unknown character, spelled in bytes, as `data_tools.tokenizer` does it.
- Hugging Face matches *every* entry of a unigram vocabulary in the text; sentencepiece matches neither
  control nor byte pieces. Those get a score so low that spelling the same characters always wins; and a
  character in them that has no piece, which would cost even more, cuts the text before anything is matched.
- sentencepiece adds scores in float32, Hugging Face in float64. Where two segmentations of a text score the
  same, rounding decides, unless the scores are multiples of 1/64 (`has_exact_scores`).

Special tokens in the *text*: Hugging Face tokenizers read the characters "[MASK]" as the special id, which is
what fill-mask users want; our own tokenizer reads them as ordinary text. `tokenizer(text,
split_special_tokens=True)` does as ours. Only the special tokens that the model kind uses are registered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_tools.errors import DataError
from data_tools.tokenizer import CLS, EOD, MASK, PAD, SEP, UNK, WORD_BOUNDARY, Tokenizer
from finetune.errors import ConversionError

if TYPE_CHECKING:
    import tokenizers

ModelKind = Literal["gpt", "bert"]

_UNIGRAM, _BPE = 1, 2  # sentencepiece's TrainerSpec.ModelType
_NORMAL, _USER_DEFINED = 1, 4  # sentencepiece's SentencePiece.Type: the pieces that text can become

SPECIAL_TOKENS: dict[ModelKind, dict[str, str]] = {
    "gpt": {"bos_token": EOD, "eos_token": EOD, "unk_token": UNK, "pad_token": PAD},
    "bert": {"cls_token": CLS, "sep_token": SEP, "mask_token": MASK, "unk_token": UNK, "pad_token": PAD},
}
INPUT_NAMES: dict[ModelKind, list[str]] = {
    "gpt": ["input_ids", "attention_mask"],
    "bert": ["input_ids", "token_type_ids", "attention_mask"],
}

SCORE_UNIT = 64
"""Piece scores that are multiples of 1/64 add up without rounding in float32, up to a sum of 2**18."""

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


def write_hf_tokenizer(model_file: Path, kind: ModelKind, max_length: int, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, and the sentencepiece model itself, into `directory`.

    Args:
        model_file: One of our sentencepiece models.
        kind: BERT adds [CLS] A [SEP] B [SEP] and token types; GPT adds nothing.
        max_length: Longest input of the model, in tokens.
        directory: Exists already.

    Raises:
        DataError: The file is not one of our models.
        ConversionError: The written tokenizer gives other ids.
    """
    from transformers import PreTrainedTokenizerFast

    original = Tokenizer.load(model_file)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=build_fast_tokenizer(model_file, kind),
        model_max_length=max_length,
        model_input_names=INPUT_NAMES[kind],
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS[kind],
    )
    wrapped.save_pretrained(directory)
    _name_portable_class(directory / "tokenizer_config.json")
    # Kept beside it, so that `headwater import` gets the original back.
    (directory / "tokenizer.model").write_bytes(model_file.read_bytes())
    check_same_ids(original, directory, PROBES)


def build_fast_tokenizer(model_file: Path, kind: ModelKind) -> tokenizers.Tokenizer:
    """The `tokenizers` object for one of our sentencepiece models.

    Raises:
        DataError: A model type that has no counterpart, or one that normalises its text.
    """
    from tokenizers import AddedToken, Regex, decoders, pre_tokenizers, processors
    from tokenizers import Tokenizer as FastTokenizer

    proto = _read_model(model_file)
    model_type = proto.trainer_spec.model_type
    if model_type not in (_UNIGRAM, _BPE):
        raise DataError(f"{model_file}: only unigram and bpe models can become Hugging Face tokenizers")
    fast = FastTokenizer(_unigram(proto) if model_type == _UNIGRAM else _bpe(proto))
    unspelled = _unspelled_characters(proto)
    if unspelled:
        cut = Regex(f"[{''.join(re.escape(c) for c in unspelled)}]")
        fast.pre_tokenizer = pre_tokenizers.Split(cut, "isolated")
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = sorted(set(SPECIAL_TOKENS[kind].values()))
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if kind == "bert":
        fast.post_processor = processors.TemplateProcessing(
            single=f"{CLS}:0 $A:0 {SEP}:0",
            pair=f"{CLS}:0 $A:0 {SEP}:0 $B:1 {SEP}:1",
            special_tokens=[(CLS, Tokenizer.cls_id), (SEP, Tokenizer.sep_id)],
        )
    return fast


def check_same_ids(original: Tokenizer, directory: Path, texts: Sequence[str]) -> None:
    """Load the tokenizer in `directory` the way users do and compare ids and round trips.

    A unigram model whose scores are not exact may cut a text differently where two ways score the same; that
    alone is let pass, and `has_exact_scores` tells.

    Raises:
        ConversionError: With the first text that differs.
    """
    from transformers import AutoTokenizer

    converted = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    proto = _read_model(original.path)
    scores = None if _exact(proto) else [piece.score for piece in proto.pieces]
    for text in differing_texts(original, converted, texts):
        ours, theirs = original.encode(text), plain_ids(converted, text)
        if scores is None or not _same_score(scores, ours, theirs) or converted.decode(theirs) != text:
            raise ConversionError(
                f"the tokenizer converted from {original.path} gives other ids than it for {text!r}; "
                "nothing was written"
            )


def differing_texts(original: Tokenizer, converted: Any, texts: Iterable[str]) -> Iterator[str]:
    """The texts that a transformers tokenizer does not encode and decode as the original does."""
    for text in texts:
        ids = plain_ids(converted, text)
        if ids != original.encode(text) or converted.decode(ids) != original.decode(ids):
            yield text


def plain_ids(converted: Any, text: str) -> list[int]:
    """Ids of a text from a transformers tokenizer, special tokens neither added nor recognised."""
    encoded = converted(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    return ids


def has_exact_scores(model_file: Path) -> bool:
    """Whether sums of piece scores are free of rounding, so that Hugging Face cuts every text alike."""
    return _exact(_read_model(model_file))


def _exact(proto: Any) -> bool:
    if proto.trainer_spec.model_type != _UNIGRAM:
        return True  # merges are ranked, not summed
    # sentencepiece replaces the scores of user-defined pieces by ones that are not exact.
    pieces = [p for p in proto.pieces if p.type in (_NORMAL, _USER_DEFINED)]
    return all(p.type == _NORMAL and (p.score * SCORE_UNIT).is_integer() for p in pieces)


def _same_score(scores: Sequence[float], first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two segmentations of a short text score the same up to float32 rounding."""
    return abs(sum(scores[i] for i in first) - sum(scores[i] for i in second)) < 1e-2


def _name_portable_class(path: Path) -> None:
    """Transformers 5 writes a class name that version 4 does not know; both know this one."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _read_model(model_file: Path) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    Tokenizer.load(model_file)  # refuses files that are not ours, with the reason
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model_file.read_bytes())
    rules = proto.normalizer_spec
    if rules.name != "identity" or rules.add_dummy_prefix or rules.remove_extra_whitespaces:
        raise DataError(
            f"{model_file}: changes text before encoding; train it with `headwater data tokenizer`"
        )
    return proto


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


def _unigram(proto: Any) -> tokenizers.models.Unigram:
    from tokenizers.models import Unigram

    scores = _text_pieces(proto)
    # Below any spelling of the longest such piece in other pieces.
    never = min(scores.values()) * max(len(p.piece) for p in proto.pieces) - 100.0
    vocabulary = [
        (_spell(p), p.score) if p.type in (_NORMAL, _USER_DEFINED) else (p.piece, never) for p in proto.pieces
    ]
    return Unigram(vocabulary, unk_id=Tokenizer.unk_id, byte_fallback=True)


def _bpe(proto: Any) -> tokenizers.models.BPE:
    """Every way to split a piece into two others is a merge; a better score merges earlier."""
    from tokenizers.models import BPE

    scores = _text_pieces(proto)
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
    return BPE(vocabulary, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True)
