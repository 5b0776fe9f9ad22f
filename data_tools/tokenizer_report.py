"""How well a tokenizer fits a text: what `headwater data tokenizer` tells at its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.tokenizer import WORD_BOUNDARY, Tokenizer

_MOST_BYTES = 10_000_000  # of text that is looked at
_FEW_TOKENS = 25  # of the training sample for each id: most ids of such a vocabulary are hardly ever met
_MANY_TOKENS, _POOR_USE = 100, 0.6  # of looked-at text for each id; a fitting vocabulary is used to 75 %


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerReport:
    """Measured on some documents.

    Attributes:
        held_out: the tokenizer was not trained on them.
        documents, bytes, tokens: how much there was.
        bytes_per_token: of UTF-8.
        characters_covered: share of the characters that have a piece of their own.
        byte_token_share: share of the tokens that are single bytes, or unknown where there are no bytes.
        text_ids: ids that are neither special nor bytes.
        text_ids_used: those of them that occur.
        training_tokens_per_id: tokens of the whole training sample, about, for each of `text_ids`.
        encode_mb_per_second: one thread, on the machine of the training.
    """

    held_out: bool
    documents: int
    bytes: int
    tokens: int
    bytes_per_token: float
    characters_covered: float
    byte_token_share: float
    text_ids: int
    text_ids_used: int
    training_tokens_per_id: float
    encode_mb_per_second: float

    @property
    def vocabulary_use(self) -> float:
        """Share of `text_ids` that occur."""
        return self.text_ids_used / max(self.text_ids, 1)


def report_on(
    tokenizer: Tokenizer, texts: Sequence[str], held_out: bool, training_bytes: int
) -> TokenizerReport:
    """Encode texts, the first 10 MB of them, and count.

    Args:
        tokenizer: what to report on.
        texts: not empty.
        held_out: it was not trained on them.
        training_bytes: of the text that it was trained on.
    """
    texts = list(_first(texts))
    size = sum(len(text.encode()) for text in texts)
    start = time.perf_counter()
    arrays = tokenizer.encode_batch(texts)
    seconds = time.perf_counter() - start
    occurrences = np.zeros(tokenizer.vocab_size, np.int64)
    for array in arrays:
        occurrences += np.bincount(array, minlength=tokenizer.vocab_size)
    tokens = int(occurrences.sum())
    is_text = ~tokenizer.is_byte
    is_text[list(tokenizer.special_ids)] = False
    unknown = 0 if tokenizer.unk_id is None else int(occurrences[tokenizer.unk_id])
    text_ids = int(is_text.sum())
    bytes_per_token = size / max(tokens, 1)
    return TokenizerReport(
        held_out=held_out,
        documents=len(texts),
        bytes=size,
        tokens=tokens,
        bytes_per_token=round(bytes_per_token, 4),
        characters_covered=round(_covered(tokenizer, texts), 6),
        byte_token_share=round((int(occurrences[tokenizer.is_byte].sum()) + unknown) / max(tokens, 1), 6),
        text_ids=text_ids,
        text_ids_used=int(np.count_nonzero(occurrences[is_text])),
        training_tokens_per_id=round(training_bytes / bytes_per_token / max(text_ids, 1), 1),
        encode_mb_per_second=round(size / 1e6 / max(seconds, 1e-9), 2),
    )


def report_lines(report: TokenizerReport) -> Iterator[str]:
    """The report in words; a poor use of the vocabulary is a warning."""
    where = "held-out" if report.held_out else "training (too few documents to hold any out)"
    yield (
        f"on {report.documents:,} {where} documents, {report.bytes / 1e6:.2f} MB: "
        f"{report.bytes_per_token:.2f} bytes per token, {report.characters_covered:.3%} of the characters "
        f"have a piece, {report.byte_token_share:.3%} of the tokens are bytes, encodes "
        f"{report.encode_mb_per_second:.1f} MB/s"
    )
    yield f"vocabulary use: {report.text_ids_used:,} of {report.text_ids:,} ids ({report.vocabulary_use:.0%})"
    if poor := poor_use(report):
        yield poor


def poor_use(report: TokenizerReport) -> str:
    """A warning where the vocabulary is larger than the text needs, or ""."""
    if report.training_tokens_per_id < _FEW_TOKENS:
        reason = f"it was trained on {report.training_tokens_per_id:.0f} tokens for each id"
    elif report.tokens >= _MANY_TOKENS * report.text_ids and report.vocabulary_use < _POOR_USE:
        reason = f"{report.vocabulary_use:.0%} of it occur in {report.tokens:,} tokens"
    else:
        return ""
    return f"warning: poor vocabulary use: {reason}; train on more text or lower --vocab-size"


def _covered(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Share of the characters that are a piece."""
    pieces = (tokenizer.id_to_piece(i) for i in np.flatnonzero(~tokenizer.is_byte).tolist())
    single = {piece.replace(WORD_BOUNDARY, " ") for piece in pieces if len(piece) == 1}
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    return sum(n for c, n in characters.items() if c in single) / max(characters.total(), 1)


def _first(texts: Sequence[str]) -> Iterator[str]:
    left = _MOST_BYTES
    for text in texts:
        if left <= 0:
            return
        left -= len(text)
        yield text
