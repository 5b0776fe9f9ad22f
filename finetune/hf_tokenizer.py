"""The tokenizer beside an exported model: written by `data_tools.hf_tokenizer`, checked as users load it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools.hf_tokenizer import PROBES, ModelKind, has_exact_scores, read_model, write_hf_files
from data_tools.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from finetune.errors import ConversionError


def write_hf_tokenizer(model_file: Path, kind: ModelKind, max_length: int, directory: Path) -> str:
    """Write a tokenizer of ours, or a tokenizer.json, as transformers loads it.

    Args:
        model_file: The tokenizer.
        kind: Of the model; see `data_tools.hf_tokenizer.write_hf_files`.
        max_length: Longest input of the model, in tokens.
        directory: Exists already.

    Returns:
        What there is to tell about it.

    Raises:
        DataError: The file is no tokenizer, or one that has no counterpart.
        ConversionError: The written tokenizer gives other ids.
    """
    original = load_tokenizer(model_file)
    write_hf_files(original, kind, max_length, directory)
    check_same_ids(original, directory, PROBES)
    if isinstance(original, SentencePieceTokenizer) and not has_exact_scores(original):
        return "the tokenizer gives the same ids as ours, except where two ways to cut a text score the same"
    return "the tokenizer gives the same ids as ours"


def check_same_ids(original: Tokenizer, directory: Path, texts: Sequence[str]) -> None:
    """Load the tokenizer in `directory` the way users do and compare ids and round trips.

    A unigram model whose scores are not exact may cut a text differently where two ways score the same; that
    alone is let pass, and `has_exact_scores` tells.

    Raises:
        ConversionError: With the first text that differs.
    """
    from transformers import AutoTokenizer

    converted = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    scores = None
    if isinstance(original, SentencePieceTokenizer) and not has_exact_scores(original):
        scores = [piece.score for piece in read_model(original).pieces]
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
        known = original.unk_id not in ids  # each side has its own mark for what is unknown
        if ids != original.encode(text) or (known and converted.decode(ids) != original.decode(ids)):
            yield text


def plain_ids(converted: Any, text: str) -> list[int]:
    """Ids of a text from a transformers tokenizer, special tokens neither added nor recognised."""
    encoded = converted(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    return ids


def _same_score(scores: Sequence[float], first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two segmentations of a short text score the same up to float32 rounding."""
    return abs(sum(scores[i] for i in first) - sum(scores[i] for i in second)) < 1e-2
