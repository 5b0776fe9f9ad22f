"""Megatron-core's datasets as competitors of `data_loading`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset, BERTMaskedWordPieceDatasetConfig
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from pretrain.data.objectives import Vocabulary

BERT_SAMPLES = 4096
"""What an index is built for; None for one epoch is refused by helpers.cpp of megatron-core 0.16.1."""


class WordPieces:
    """What Megatron's datasets ask of a tokenizer; the pieces that begin no word begin with "##"."""

    def __init__(self, vocabulary: Vocabulary, eod_id: int) -> None:
        starts = vocabulary.is_word_start
        self.inv_vocab = {i: f"{i}" if start else f"##{i}" for i, start in enumerate(starts.tolist())}
        self.vocab_size, self.unique_identifiers = len(starts), {"class": "WordPieces"}
        self.cls, self.sep, self.mask = vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id
        self.pad, self.eod, self.eos = vocabulary.pad_id, eod_id, eod_id


def start_single_rank() -> None:
    """Both datasets ask torch.distributed for their rank."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )


def gpt_dataset(prefix: str, seq_length: int, tokenizer: WordPieces, cache: Path) -> GPTDataset:
    """One shuffled epoch, as `pretrain_gpt.py` reads it with attention masks left to the kernel."""
    start_single_rank()
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=seq_length, split="1,0,0", path_to_cache=str(cache),
        tokenizer=tokenizer, reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
        create_attention_mask=False,
    )  # fmt: skip
    return _build(GPTDataset, prefix, config)


def bert_dataset(
    prefix: str, seq_length: int, tokenizer: WordPieces, max_ngram: int, cache: Path
) -> BERTMaskedWordPieceDataset:
    """One epoch of whole-word masking with sentence pairs.

    Args:
        prefix: an IndexedDataset of sentences.
        seq_length: tokens in a sample.
        tokenizer: special ids and word boundaries.
        max_ngram: words masked together; 1 as in the paper and in Headwater, 3 in `pretrain_bert.py`.
        cache: directory for indexes.
    """
    start_single_rank()
    config = BERTMaskedWordPieceDatasetConfig(
        random_seed=1, sequence_length=seq_length, split="1,0,0", path_to_cache=str(cache),
        tokenizer=tokenizer, masking_probability=0.15, short_sequence_probability=0.1,
        masking_max_ngram=max_ngram, masking_do_full_word=True, masking_do_permutation=False,
        masking_use_longer_ngrams=False, masking_use_geometric_distribution=False, classification_head=True,
    )  # fmt: skip
    return _build(BERTMaskedWordPieceDataset, prefix, config)


def _build(kind: Any, prefix: str, config: Any) -> Any:
    os.makedirs(config.path_to_cache, exist_ok=True)
    source = IndexedDataset(prefix)
    numbers = np.arange(kind.numel_low_level_dataset(source), dtype=np.int32)
    samples = numbers.size if kind is GPTDataset else BERT_SAMPLES
    return kind(source, prefix, numbers, samples - 1, Split.train, config)
