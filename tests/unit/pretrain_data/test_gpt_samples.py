from __future__ import annotations

import numpy as np
import pytest

from data_tools.errors import DataError
from pretrain.data.gpt_samples import GptSamples
from pretrain.data.philox import SampleIds, derive_key
from pretrain.data.reader import BlockReader
from tests.unit.pretrain_data.support import marked_documents, marked_split, raw_stream

KEY = derive_key(1, "shift")


@pytest.fixture
def manifest(tmp_path):
    return marked_split(tmp_path / "train", marked_documents(np.random.default_rng(0), 50))


def read_epoch(samples: GptSamples, epoch: int) -> np.ndarray:
    count = samples.count
    return samples.read(SampleIds(np.full(count, KEY), np.full(count, epoch), np.arange(count)))[0]


@pytest.mark.parametrize("seq_length", [1, 7, 64, 501])
def test_an_epoch_is_the_stream_cut_into_pieces(manifest, seq_length):
    """Against a plain concatenation of what stock webdataset reads."""
    stream = raw_stream(manifest.directory)
    samples = GptSamples(BlockReader(manifest), seq_length, KEY)
    assert samples.count == len(stream) // seq_length
    for epoch in range(4):
        rows = read_epoch(samples, epoch)
        assert rows.dtype == np.uint16 and rows.shape == (samples.count, seq_length + 1)
        shift = int(samples.starts(np.array([epoch]), np.array([0]))[0])
        assert 0 <= shift < seq_length
        expected = np.roll(stream, -shift)
        assert np.array_equal(rows[:, :-1].ravel(), expected[: samples.count * seq_length])
        assert np.array_equal(rows[:, 1:].ravel(), np.roll(expected, -1)[: samples.count * seq_length])


def test_without_a_key_samples_begin_at_the_first_token(manifest):
    samples = GptSamples(BlockReader(manifest), 16, None)
    assert np.array_equal(read_epoch(samples, 3)[:5, :16].ravel(), raw_stream(manifest.directory)[:80])


def test_the_shift_varies_with_epoch_and_key(manifest):
    samples = GptSamples(BlockReader(manifest), 501, KEY)
    shifts = samples.starts(np.arange(50), np.zeros(50, np.int64))
    assert len(np.unique(shifts)) > 40
    other = GptSamples(BlockReader(manifest), 501, derive_key(2, "shift"))
    assert not np.array_equal(shifts, other.starts(np.arange(50), np.zeros(50, np.int64)))


def test_too_few_tokens_is_an_error(tmp_path):
    manifest = marked_split(tmp_path / "train", [[[10, 11, 12]], [[13]]], shards=1)
    assert GptSamples(BlockReader(manifest), 5, KEY).count == 1
    with pytest.raises(DataError, match="6 tokens.*seq_length: 6"):
        GptSamples(BlockReader(manifest), 6, KEY)
