from __future__ import annotations

import json
import os
import time

import pytest

from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer
from pretrain.config import ConfigError
from pretrain.data import eval_batches, open_stream
from pretrain.data.prefetch import Prefetcher
from tests.unit.pretrain_data.support import run_config, write_corpus


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 8}, "seed is 8 in this run, 7 in the saved state"),
    ],
)
def test_a_state_of_another_run_is_refused(change, named, kind, corpora, tmp_path):
    with open_stream(run_config(kind, tmp_path, corpora), "train", 0, 1) as stream:
        state = stream.state_dict()
    with open_stream(run_config(kind, tmp_path, corpora, **change), "train", 0, 1) as stream:
        with pytest.raises(DataError, match=named):
            stream.load_state_dict(state)
        with pytest.raises(DataError, match="consumed_samples"):
            stream.load_state_dict({**stream.state_dict(), "consumed_samples": -1})


def test_a_state_of_another_corpus_is_refused(corpora, tmp_path):
    with open_stream(run_config("gpt", tmp_path, {"it": corpora["first"]}), "train", 0, 1) as stream:
        next(stream)
        state = stream.state_dict()
    with open_stream(run_config("gpt", tmp_path, {"it": corpora["second"]}), "train", 0, 1) as stream:
        with pytest.raises(DataError, match="corpus 'it' has the manifest .* under another name"):
            stream.load_state_dict(state)


def test_no_validation_split_is_an_error_that_says_what_to_do(tokenizer, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", tokenizer, seed=5, validation=0)
    with pytest.raises(DataError, match="eval_interval: 0"):
        eval_batches(run_config("gpt", tmp_path, {"it": corpus}), 0, 1)


def test_another_tokenizer_is_refused_by_name(kind, corpus, corpora, other_tokenizer: Tokenizer, tmp_path):
    stranger = write_corpus(tmp_path / "stranger", other_tokenizer, seed=1)
    config = run_config(kind, tmp_path, {"ours": corpora["first"], "theirs": stranger})
    with pytest.raises(DataError, match="corpus 'theirs'.*another tokenizer"):
        open_stream(config, "train", 0, 1)
    config = run_config(kind, tmp_path, {"ours": corpus}, data__tokenizer=str(other_tokenizer.path))
    with pytest.raises(DataError, match="corpus 'ours'.*another tokenizer"):
        open_stream(config, "train", 0, 1)
    config = run_config(kind, tmp_path, {"ours": corpus}, model__vocab_size=500)
    with pytest.raises(DataError, match="model.vocab_size: 500.*400 pieces"):
        open_stream(config, "train", 0, 1)


def test_a_corpus_without_sentences_is_refused_for_bert(tmp_path, tokenizer, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus", tokenizer, seed=3)
    manifest = corpus / "train" / "manifest.json"
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**data, "sentences": False}))
    with pytest.raises(DataError, match="no sentence boundaries"):
        open_stream(run_config("bert", tmp_path, {"it": corpus}), "train", 0, 1)


def test_a_missing_corpus_or_shard_is_named_at_opening(kind, corpus, tmp_path):
    with pytest.raises(DataError, match=str(tmp_path / "nowhere")):
        open_stream(run_config(kind, tmp_path, {"it": corpus, "gone": tmp_path / "nowhere"}), "train", 0, 1)
    (corpus / "train" / "train-00001.tar").unlink()
    with pytest.raises(DataError, match="train-00001.tar"):
        open_stream(run_config(kind, tmp_path, {"it": corpus}), "train", 0, 1)


def test_damage_found_by_the_thread_reaches_the_consumer(kind, corpus, tmp_path):
    stream = open_stream(run_config(kind, tmp_path, {"it": corpus}), "train", 0, 1)
    stream._feed.close()
    for shard in (corpus / "train").glob("*.tar"):
        os.truncate(shard, 1000)
    for _ in range(2):
        with pytest.raises(DataError, match=r"train-0000\d.tar, block .*ends too early"):
            for _ in range(100):
                next(stream)
    stream.close()


def test_batches_that_do_not_divide_are_refused(corpora, tmp_path):
    with pytest.raises(ConfigError, match="batch.global_batch_size: 24.*2 x 5"):
        open_stream(run_config("gpt", tmp_path, corpora), "train", 0, 5)
    with pytest.raises(ValueError, match="data_parallel_rank 2"):
        open_stream(run_config("gpt", tmp_path, corpora), "train", 2, 2)


def test_prefetcher_stays_within_its_depth_and_ends():
    made = []
    prefetcher = Prefetcher((made.append(i) or i for i in range(5)), depth=2)
    deadline = time.monotonic() + 30
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2]  # two ready, one in hand
    assert [prefetcher.get() for _ in range(5)] == list(range(5))
    with pytest.raises(StopIteration):
        prefetcher.get()
    prefetcher.stop()


def test_prefetcher_hands_over_what_was_made_before_an_error():
    def failing():
        yield 1
        raise KeyError("broken")

    prefetcher = Prefetcher(failing(), depth=4)
    assert prefetcher.get() == 1
    for _ in range(2):
        with pytest.raises(KeyError, match="broken"):
            prefetcher.get()
    prefetcher.stop()
