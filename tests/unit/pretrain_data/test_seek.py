"""Seeking in a mixture of ten trillion tokens: how long until the first batch, and how much memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from dataclasses import replace

import numpy as np

from data_tools.shard_format import BLOCK_DTYPE, Manifest, load_manifest
from pretrain.config.schema import PretrainBatchConfig
from pretrain.data import Stream
from pretrain.data.feed import Corpus, Feed
from pretrain.data.gpt_samples import GptSamples
from pretrain.data.objectives import causal_lm
from pretrain.data.phases import CorpusShare, Phase
from pretrain.data.philox import derive_key
from pretrain.data.reader import BlockReader
from pretrain.data.state import StreamState
from pretrain.data.steps import BatchPlan, RankPlan
from pretrain.data.token_order import TokenStart

CORPORA = (("web", 7 * 10**12, 0.6), ("code", 2 * 10**12, 0.3), ("books", 10**12, 0.1))
BLOCK_TOKENS, SEQ_LENGTH, BATCH, SEED = 1 << 19, 2048, 1024, 7
SECONDS, BYTES, BYTES_A_BLOCK = 0.1, 200e6, 50


def token_at(position: np.ndarray) -> np.ndarray:
    return (position ^ (position >> 17)) & 0xFFFF


class CountedShards:
    """A source whose tokens tell where they stand."""

    verified, remote = True, False

    def gather(self, *_):
        return False

    def read(self, shard, block, offset, buffer):
        first = block * BLOCK_TOKENS + offset // 2
        buffer[:] = token_at(np.arange(first, first + buffer.nbytes // 2)).astype("<u2").tobytes()

    def close(self):
        pass


def huge_feed(template: Manifest) -> Feed:
    """Three corpora as block tables without files; one row in memory, as the table itself is not measured."""
    corpora = []
    for name, tokens, weight in CORPORA:
        row = np.zeros(1, BLOCK_DTYPE)
        row["tokens"] = BLOCK_TOKENS
        blocks = np.broadcast_to(row, tokens // BLOCK_TOKENS)
        size = len(blocks) * BLOCK_TOKENS
        reader = BlockReader(replace(template, blocks=blocks, tokens=size, hash=name), source=CountedShards())
        share = CorpusShare(name, weight, name, size, "tokens", TokenStart())
        key = derive_key(SEED, "corpus", name)
        samples = GptSamples(reader, SEQ_LENGTH)
        corpora.append(Corpus(reader, samples, key, share, share.order(SEQ_LENGTH, key)))
    phase = Phase(0, 0, SEQ_LENGTH, tuple(corpus.share for corpus in corpora))
    return Feed(
        tuple(corpora), phase.mixture(SEED), lambda arrays, _: causal_lm(arrays[0]), SEED, True, phase
    )


def test_the_first_batch_of_ten_trillion_tokens_comes_at_once_anywhere(corpora):
    """CPU time, as nothing is waited for; the state is loaded from JSON, and a batch is made whole."""
    template = load_manifest(corpora["first"] / "train")
    sizes = PretrainBatchConfig(micro_batch_size=8, global_batch_size=BATCH, seq_length=SEQ_LENGTH)
    tracemalloc.start()
    try:
        feed = huge_feed(template)
        begun = StreamState("gpt", "train", SEED, {}, (feed.phase,), (BatchPlan(0, 0, sizes),), 0)
        plan = RankPlan(BATCH, 8, rank=3, size=16)
        stream = Stream(feed, plan, begun, prefetch_steps=0)
        tracemalloc.reset_peak()  # opening copies a column of the table for a moment
        for steps in (0, 12, 10**6, 4_768_372, 10**9):  # the fourth is 10**13 tokens on
            state = json.dumps(replace(begun, consumed_samples=steps * BATCH).to_json())
            fastest = min(_seconds_to_first_batch(stream, state) for _ in range(3))
            assert fastest < SECONDS
            stream.load_state_dict(json.loads(state))
            check(stream, plan, next(stream), steps * BATCH)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    blocks = sum(tokens // BLOCK_TOKENS for _, tokens, _ in CORPORA)
    assert blocks > 19e6 and peak < BYTES
    assert BLOCK_DTYPE.itemsize < BYTES_A_BLOCK


def _seconds_to_first_batch(stream: Stream, state: str) -> float:
    began = time.process_time()
    stream.load_state_dict(json.loads(state))
    next(stream)
    return time.process_time() - began


def check(stream: Stream, plan: RankPlan, step: list, consumed: int) -> None:
    """Every token of a rank's step is the one that stands where the order says."""
    feed = stream._feed
    located = feed.locate(plan.numbers(consumed, 1))
    rows = np.concatenate([batch["tokens"] for batch in step])
    assert rows.shape == (BATCH // plan.size, SEQ_LENGTH) and len(set(located.corpus.tolist())) == 3
    for index, corpus in enumerate(feed.corpora):
        spans = located.of_corpus(index).spans
        expected = (spans.start[:, None] + np.arange(SEQ_LENGTH)) % corpus.reader.token_starts[-1]
        assert np.array_equal(rows[located.corpus == index], token_at(expected))
