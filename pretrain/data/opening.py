"""Opening the corpora of a run: tokenizer, manifests, indexes, and whether they fit together."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from data_tools.errors import DataError
from data_tools.shard_format import Manifest
from data_tools.tokenizer import Tokenizer
from pretrain.config.data import CorpusConfig
from pretrain.data.access.cached import check_cache_room
from pretrain.data.access.opening import Access, fetch_tokenizer, open_source, open_tables
from pretrain.data.bert_samples import BertSamples
from pretrain.data.feed import Arrays, Corpus, Feed, Samples, Split
from pretrain.data.gpt_samples import GptSamples
from pretrain.data.objectives import (
    DocumentRows,
    MicroBatch,
    PairBatch,
    Vocabulary,
    causal_lm,
    document_lm,
    masked_lm,
)
from pretrain.data.order import IndexStart
from pretrain.data.packing_index import PackedSamples, open_packing
from pretrain.data.pair_index import open_pair_index
from pretrain.data.phases import CorpusShare, Phase
from pretrain.data.philox import I64, SampleIds, derive_key
from pretrain.data.reader import BlockReader
from pretrain.data.segments import SegmentSamples, open_segments
from pretrain.data.sentences import SentenceTables
from pretrain.data.settings import StreamConfig
from pretrain.data.token_order import TokenStart

VALIDATION_SEED = 0
"""Validation samples are masked the same in every run, so runs with other seeds can be compared."""


def open_feed(config: StreamConfig, split: Split) -> Feed:
    """Open the corpora of a run at the start of training and check them against its configuration.

    Args:
        config: corpora without a validation split are left out of validation.
        split: "train" is shuffled, "validation" comes in storage order.

    Raises:
        DataError: shards are missing or damaged, made with another tokenizer, or too few.
    """
    access = Access(config.data, Path(config.cache))
    tables = [(entry, open_tables(entry, split, access)) for entry in config.data.corpora]
    if not any(manifest for _, manifest in tables):
        raise DataError(
            "no corpus in data.corpora has a validation split; set training.eval_interval: 0 or prepare "
            "the corpus with a validation share"
        )
    tokenizer = open_tokenizer(config)
    vocabulary = Vocabulary.of(tokenizer) if config.kind == "bert" else None
    train = split == "train"
    seed = config.seed if train else VALIDATION_SEED
    opened = []
    for entry, manifest in tables:
        if manifest is not None:
            _check_tokenizer(entry, manifest, tokenizer)
            opened.append((entry, manifest, open_source(entry, manifest, access)))
    if train:
        limit = config.data.limit
        tokens = (limit.tokens or (limit.samples or 0) * config.batch.seq_length) if limit else None
        check_cache_room([source for *_, source in opened], config.data.cache_gb, tokens)
    corpora = []
    for entry, manifest, source in opened:
        reader = BlockReader(manifest, config.data.verify_blocks, source)
        samples, share = _open_samples(config, entry, reader, vocabulary, limited=train)
        key = derive_key(seed, "corpus", entry.name)
        order = share.order(config.batch.seq_length, key if train else None)
        corpora.append(Corpus(reader, samples, key, share, order))
    phase = Phase(0, 0, config.batch.seq_length, tuple(corpus.share for corpus in corpora))
    return Feed(
        corpora=tuple(corpora),
        mixture=phase.mixture(seed),
        objective=(
            partial(_bert_objective, config, vocabulary) if vocabulary else partial(_gpt_objective, config)
        ),
        seed=seed,
        shuffle=train,
        phase=phase,
    )


def _open_samples(
    config: StreamConfig,
    entry: CorpusConfig,
    reader: BlockReader,
    vocabulary: Vocabulary | None,
    limited: bool,
) -> tuple[Samples, CorpusShare]:
    """What a corpus is cut into, and how much of it is used."""
    length, limit = config.batch.seq_length, config.data.limit if limited else None
    share = partial(CorpusShare, entry.name, entry.weight, reader.manifest.hash)
    samples: Samples
    if vocabulary is not None:
        samples, starts = _open_bert(config, reader, vocabulary)
        size = samples.count
        if limit and limit.tokens:
            blocks = min(int(np.searchsorted(reader.token_starts, limit.tokens)), len(starts) - 1)
            size = int(starts[blocks])
    elif config.data.packing == "best_fit":
        samples = PackedSamples(reader, open_packing(reader, length, Path(config.cache)), length)
        size = samples.count
        if limit and limit.tokens:
            size = min(size, limit.tokens // length)
    else:
        samples = GptSamples(reader, length, _knows_documents(config))
        size = int(reader.token_starts[-1])
        if limit:
            size = min(size, limit.tokens or length * (limit.samples or 0))
        if size < length:
            raise DataError(f"data.limit: {size} tokens are too few for one sample of {length}; raise it")
        return samples, share(size, "tokens", TokenStart())
    if limit and limit.samples:
        size = min(size, limit.samples)
    if not size:
        raise DataError("data.limit: no sample lies in so few tokens; raise it")
    return samples, share(size, "samples", IndexStart())


def _open_bert(
    config: StreamConfig, reader: BlockReader, vocabulary: Vocabulary
) -> tuple[BertSamples | SegmentSamples, I64]:
    """The samples, and [blocks + 1] the first one of each block."""
    length, cache = config.batch.seq_length, Path(config.cache)
    short = config.data.masking.short_sequence_probability
    if config.data.sentence_pairs == "none":
        segments = open_segments(reader, length, short, cache)
        return SegmentSamples(reader, segments, vocabulary, length), segments.starts
    if not reader.manifest.sentences:
        raise DataError(
            f"{reader.manifest.origin} has no sentence boundaries, which BERT's sentence pairs need; "
            "prepare the corpus with sentences, or set data.sentence_pairs: none"
        )
    swapped = config.data.sentence_pairs == "sop"
    pairs = open_pair_index(reader, length, short, cache, swapped)
    return BertSamples(SentenceTables(reader), pairs, vocabulary, length, swapped), pairs.starts


def _knows_documents(config: StreamConfig) -> bool:
    """Whether GPT's samples must know where documents begin."""
    data = config.data
    packed = data.packing == "best_fit"
    return packed or data.reset_attention_mask or data.reset_position_ids or data.eod_mask_loss


def _gpt_objective(config: StreamConfig, arrays: Arrays, ids: SampleIds) -> MicroBatch:
    del ids  # nothing about next-token prediction is random
    if not _knows_documents(config):
        return causal_lm(arrays[0])
    data, packed = config.data, config.data.packing == "best_fit"
    return document_lm(
        DocumentRows(*arrays),
        attention=packed or data.reset_attention_mask,
        positions=packed or data.reset_position_ids,
        within=packed or data.eod_mask_loss,
    )


def _bert_objective(
    config: StreamConfig, vocabulary: Vocabulary, arrays: Arrays, ids: SampleIds
) -> MicroBatch:
    return masked_lm(PairBatch(*arrays), ids, vocabulary, config.data.masking)


def open_tokenizer(config: StreamConfig) -> Tokenizer:
    """The tokenizer that the corpora were made with: `data.tokenizer`, or the one of the first corpus.

    Raises:
        DataError: it cannot be read, or the model has another vocabulary.
    """
    path = config.data.tokenizer or config.data.corpora[0].path
    tokenizer = fetch_tokenizer(path, Access(config.data, Path(config.cache)))
    if config.vocab_size is not None and tokenizer.vocab_size != config.vocab_size:
        raise DataError(
            f"model.vocab_size: {config.vocab_size}, but the tokenizer {tokenizer.path} has "
            f"{tokenizer.vocab_size} pieces; set model.vocab_size to that, or data.tokenizer to another"
        )
    return tokenizer


def _check_tokenizer(entry: CorpusConfig, manifest: Manifest, tokenizer: Tokenizer) -> None:
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            f"corpus {entry.name!r} ({manifest.origin}) was made with another tokenizer (sha256 "
            f"{manifest.tokenizer_sha256[:12]}) than {tokenizer.path} ({tokenizer.sha256[:12]}); prepare the "
            "corpus again or set data.tokenizer to its model"
        )
