"""[CLS] text [SEP], or [CLS] text [SEP] second [SEP], cut as transformers' `truncation=True` cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.batches import Examples
from finetune.tasks.task import Encoder
from finetune.text import TextCodec
from pretrain.config import ConfigError

Ids = npt.NDArray[np.int32]


def special_ids(codec: TextCodec) -> tuple[int, int, int]:
    """[CLS], [SEP] and [PAD] of a BERT's tokenizer.

    Raises:
        ConfigError: One of them is missing.
    """
    cls_id, sep_id, pad_id = codec.cls_id, codec.sep_id, codec.pad_id
    if cls_id is None or sep_id is None or pad_id is None:
        raise ConfigError(
            "pretrained: the tokenizer of this checkpoint lacks [CLS], [SEP] or [PAD]; it is no BERT's"
        )
    return cls_id, sep_id, pad_id


def joined(cls_id: int, sep_id: int, first: Ids, second: Ids | None) -> tuple[Ids, Ids]:
    """Tokens and segments of [CLS] first [SEP] or [CLS] first [SEP] second [SEP]."""
    parts = [[cls_id], first, [sep_id]] + ([] if second is None else [second, [sep_id]])
    tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
    types = np.zeros(len(tokens), np.int32)
    types[len(first) + 2 :] = 1
    return tokens, types


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths that two sequences are cut to: the longer one first, as the `tokenizers` library counts."""
    if first + second <= room:
        return first, second
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room // 2 + room % 2
    return (shorter, longer) if first <= second else (longer, shorter)


def encode_pairs(
    encoder: Encoder,
    texts: Sequence[str],
    seconds: Sequence[str] | None,
    targets: Mapping[str, npt.NDArray[Any]],
) -> Examples:
    """Tokenise texts or pairs of texts, cut to seq_length tokens.

    Raises:
        ConfigError: A tokenizer without [CLS], [SEP] or [PAD].
    """
    cls_id, sep_id, pad_id = special_ids(encoder.codec)
    firsts = encoder.codec.encode_batch(texts)
    others = None if seconds is None else encoder.codec.encode_batch(seconds)
    room = encoder.seq_length - (2 if others is None else 3)
    sequences, truncated = [], 0
    for number, first in enumerate(firsts):
        if others is None:
            second, kept = None, (min(len(first), room), 0)
        else:
            second = others[number]
            kept = longest_first(len(first), len(second), room)
        truncated += sum(kept) < len(first) + (0 if second is None else len(second))
        cut = None if second is None else second[: kept[1]]
        sequences.append(joined(cls_id, sep_id, first[: kept[0]], cut))
    return Examples(
        sequences={"tokens": [t for t, _ in sequences], "token_types": [s for _, s in sequences]},
        fill={"tokens": pad_id, "token_types": 0},
        targets=targets,
        rows=np.arange(len(sequences)),
        truncated=truncated,
    )
