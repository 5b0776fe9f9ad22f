"""All corpora of a split as one endless, numbered sequence of samples.

A `Feed` turns global sample numbers into micro-batches and keeps no position: whoever asks, in whatever
order, gets the same samples for the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.shard_format import MANIFEST_NAME, TOKENIZER_NAME, Manifest, load_manifest
from data_tools.tokenizer import Tokenizer
from pretrain.config.schema import CorpusConfig, RunConfig
from pretrain.data.bert_samples import BertSamples
from pretrain.data.gpt_samples import GptSamples
from pretrain.data.mixture import Mixture, build_mixture
from pretrain.data.objectives import MicroBatch, PairBatch, Vocabulary, causal_lm, masked_lm
from pretrain.data.order import sample_at
from pretrain.data.pair_index import open_pair_index
from pretrain.data.philox import I64, SampleIds, derive_key
from pretrain.data.reader import BlockReader
from pretrain.data.sentences import SentenceTables

Split = Literal["train", "validation"]
Arrays = Sequence[npt.NDArray[Any]]

VALIDATION_SEED = 0
"""Validation samples are masked the same in every run, so runs with other seeds can be compared."""


class Samples(Protocol):
    """The samples of one corpus, in storage order."""

    count: int

    def read(self, ids: SampleIds) -> Arrays:
        """Arrays with one row for each of the samples."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """One open corpus.

    Attributes:
        config: its entry in the run configuration.
        reader: its shards.
        samples: what is cut from them.
        key: `derive_key` of the seed and the corpus.
    """

    config: CorpusConfig
    reader: BlockReader
    samples: Samples
    key: np.uint64


@dataclass(frozen=True, slots=True)
class Located:
    """Where global samples come from.

    Attributes:
        corpus: [n] index of the corpus.
        ids: the n samples within their corpora.
    """

    corpus: I64
    ids: SampleIds

    def take(self, rows: slice) -> Located:
        """Some of the samples."""
        return Located(self.corpus[rows], self.ids.take(rows))


@dataclass(frozen=True, slots=True)
class Feed:
    """The samples of a split.

    Attributes:
        corpora: what is mixed.
        mixture: the shares.
        objective: from the arrays of `Samples.read` to a micro-batch.
        shuffle: False keeps storage order in every epoch.
    """

    corpora: tuple[Corpus, ...]
    mixture: Mixture
    objective: Callable[[Arrays, SampleIds], MicroBatch]
    shuffle: bool

    @property
    def sizes(self) -> I64:
        """[C] samples in an epoch of each corpus."""
        return np.array([corpus.samples.count for corpus in self.corpora], dtype=np.int64)

    def locate(self, numbers: I64) -> Located:
        """Find global samples; pure arithmetic, the same cost at any number.

        Args:
            numbers: [n] global sample numbers, counted from the start of training.
        """
        which, within = self.mixture.locate(numbers)
        epoch, sample = np.divmod(within, self.sizes[which])
        key = np.array([corpus.key for corpus in self.corpora])[which]
        if self.shuffle:
            for index, corpus in enumerate(self.corpora):
                rows = np.flatnonzero(which == index)
                sample[rows] = sample_at(sample[rows], epoch[rows], corpus.samples.count, corpus.key)
        return Located(which, SampleIds(key, epoch, sample))

    def micro_batch(self, located: Located) -> MicroBatch:
        """Read samples and make the model's input of them.

        Raises:
            DataError: a shard is missing or damaged.
        """
        sources = np.unique(located.corpus).tolist()
        if len(sources) == 1:
            return self.objective(self.corpora[sources[0]].samples.read(located.ids), located.ids)
        merged: list[npt.NDArray[Any]] = []
        for index in sources:
            rows = np.flatnonzero(located.corpus == index)
            parts = self.corpora[index].samples.read(located.ids.take(rows))
            merged = merged or [np.empty((len(located.corpus), *p.shape[1:]), p.dtype) for p in parts]
            for whole, part in zip(merged, parts, strict=True):
                whole[rows] = part
        return self.objective(merged, located.ids)

    def close(self) -> None:
        """Close all shards."""
        for corpus in self.corpora:
            corpus.reader.close()


def open_feed(config: RunConfig, split: Split, cache: Path) -> Feed:
    """Open the corpora of a run and check them against its configuration.

    Args:
        config: the run.
        split: corpora without a validation split are left out of validation.
        cache: directory for indexes of sentence pairs; BERT only.

    Raises:
        DataError: shards are missing or damaged, made with another tokenizer, or too few.
    """
    entries = [entry for entry in config.data.corpora if _has_split(entry, split)]
    if not entries:
        raise DataError(
            "no corpus in data.corpora has a validation split; set training.eval_interval: 0 or prepare "
            "the corpus with a validation share"
        )
    tokenizer = _open_tokenizer(config)
    vocabulary = Vocabulary.of(tokenizer)
    seed = config.seed if split == "train" else VALIDATION_SEED
    corpora = []
    for entry in entries:
        manifest = _open_manifest(entry, split, tokenizer)
        key = derive_key(seed, "corpus", entry.name)
        reader = BlockReader(manifest, verify=config.data.verify_blocks)
        if config.model.kind == "gpt":
            shift_key = derive_key(seed, "shift", entry.name) if split == "train" else None
            samples: Samples = GptSamples(reader, config.batch.seq_length, shift_key)
        else:
            short = config.data.masking.short_sequence_probability
            index = open_pair_index(reader, config.batch.seq_length, short, cache)
            samples = BertSamples(SentenceTables(reader), index, vocabulary, config.batch.seq_length)
        corpora.append(Corpus(entry, reader, samples, key))
    return Feed(
        corpora=tuple(corpora),
        mixture=build_mixture(
            [entry.name for entry in entries],
            [entry.weight for entry in entries],
            derive_key(seed, "mixture"),
        ),
        objective=_gpt_objective
        if config.model.kind == "gpt"
        else partial(_bert_objective, config, vocabulary),
        shuffle=split == "train",
    )


def _gpt_objective(arrays: Arrays, ids: SampleIds) -> MicroBatch:
    del ids  # nothing about next-token prediction is random
    return causal_lm(arrays[0])


def _bert_objective(config: RunConfig, vocabulary: Vocabulary, arrays: Arrays, ids: SampleIds) -> MicroBatch:
    return masked_lm(PairBatch(*arrays), ids, vocabulary, config.data.masking)


def _has_split(entry: CorpusConfig, split: Split) -> bool:
    """Training needs every corpus; a small one may have no document for validation."""
    return split == "train" or (Path(entry.path) / split / MANIFEST_NAME).exists()


def _open_tokenizer(config: RunConfig) -> Tokenizer:
    named = config.data.tokenizer
    path = Path(named) if named else Path(config.data.corpora[0].path) / TOKENIZER_NAME
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise DataError(
            f"model.vocab_size: {config.model.vocab_size}, but the tokenizer {path} has "
            f"{tokenizer.vocab_size} pieces; set model.vocab_size to that, or data.tokenizer to another"
        )
    return tokenizer


def _open_manifest(entry: CorpusConfig, split: Split, tokenizer: Tokenizer) -> Manifest:
    manifest = load_manifest(Path(entry.path) / split)
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            f"corpus {entry.name!r} ({manifest.directory}) was made with another tokenizer (sha256 "
            f"{manifest.tokenizer_sha256[:12]}) than {tokenizer.path} ({tokenizer.sha256[:12]}); prepare the "
            "corpus again or set data.tokenizer to its model"
        )
    return manifest
