from __future__ import annotations

import numpy as np
import pytest

from data_tools.errors import DataError
from pretrain.data import token_order
from pretrain.data.gpt_samples import GptSamples
from pretrain.data.philox import derive_key
from pretrain.data.reader import BlockReader
from pretrain.data.token_order import Spans, TokenOrder
from tests.unit.pretrain_data.support import marked_documents, marked_split, raw_stream

KEY = derive_key(1, "corpus")


@pytest.fixture
def manifest(tmp_path):
    return marked_split(tmp_path / "train", marked_documents(np.random.default_rng(0), 50))


def read_epoch(reader: BlockReader, order: TokenOrder, epoch: int) -> np.ndarray:
    numbers = np.arange(epoch * order.epoch_samples, (epoch + 1) * order.epoch_samples)
    return GptSamples(reader, order.seq_length).read(order.spans(*order.locate(numbers)))[0]


@pytest.mark.parametrize("seq_length", [1, 7, 64, 501])
def test_an_epoch_is_the_stream_cut_into_pieces(manifest, seq_length):
    """Against a plain concatenation of what stock webdataset reads; one window, so a piece is one range."""
    stream = raw_stream(manifest.directory)
    reader, tokens = BlockReader(manifest), manifest.tokens
    order = TokenOrder(tokens, seq_length, KEY)
    firsts = []
    for epoch in range(3):
        rows = read_epoch(reader, order, epoch)
        assert rows.dtype == np.uint16 and rows.shape == (tokens // seq_length, seq_length + 1)
        starts = [int(np.flatnonzero(stream == row[0])[0]) if row[0] > 5 else None for row in rows]
        known = [(row, start) for row, start in zip(rows, starts, strict=True) if start is not None]
        assert len(known) > len(rows) / 2
        for row, start in known:
            assert np.array_equal(row, np.resize(np.roll(stream, -start), seq_length + 1))
        assert len({start % seq_length for _, start in known}) <= 2  # the ring's end may add one
        firsts.append([start for _, start in known])
    assert seq_length == 501 or firsts[0] != sorted(firsts[0])
    assert firsts[0] != firsts[1]


def test_without_a_key_samples_begin_at_the_first_token(manifest):
    rows = read_epoch(BlockReader(manifest), TokenOrder(manifest.tokens, 16, None), 3)
    assert np.array_equal(rows[:5, :16].ravel(), raw_stream(manifest.directory)[:80])


def test_samples_of_several_ranges_are_joined(manifest, monkeypatch):
    monkeypatch.setattr(token_order, "GROUP_TOKENS", 64)
    stream = raw_stream(manifest.directory)
    order = TokenOrder(manifest.tokens, 48, KEY)
    spans = order.spans(*order.locate(np.arange(order.epoch_samples)))
    rows = read_epoch(BlockReader(manifest), order, 0)
    ring = np.concatenate([stream, stream[:1]])
    assert len(spans.row) > len(rows)
    for number, row in enumerate(rows):
        mine = [(s, n) for r, s, n in zip(*(c.tolist() for c in spans), strict=True) if r == number]
        expected = np.concatenate([ring[start : start + length] for start, length in mine])
        assert np.array_equal(row[:-1], expected)
        assert row[-1] == ring[sum(mine[-1])]  # the label of the last token is what follows it


def test_too_few_tokens_is_an_error(tmp_path):
    manifest = marked_split(tmp_path / "train", [[[10, 11, 12]], [[13]]], shards=1)
    spans = Spans(np.array([0]), np.array([0]), np.array([5]))
    assert GptSamples(BlockReader(manifest), 5).read(spans)[0].shape == (1, 6)
    with pytest.raises(DataError, match="6 tokens.*seq_length: 6"):
        GptSamples(BlockReader(manifest), 6)
