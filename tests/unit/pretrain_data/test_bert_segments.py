"""Sentence order instead of next sentences, and single segments, also of corpora without sentences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.shard_format import Header, Manifest, ShardWriter, load_manifest, write_manifest
from data_tools.tokenizer import load_tokenizer
from pretrain.config import load_config
from pretrain.config.errors import ConfigError
from pretrain.data import StreamConfig, open_stream
from pretrain.data.bert_samples import BertSamples
from pretrain.data.objectives import PairBatch
from pretrain.data.pair_index import open_pair_index
from pretrain.data.philox import SampleIds, derive_key
from pretrain.data.reader import BlockReader
from pretrain.data.segments import PIECES_NAME, SegmentSamples, open_segments
from pretrain.data.sentences import SentenceTables
from pretrain.data.skip import IGNORED_LABEL
from tests.unit.pretrain_data.support import (
    EOD,
    marked_documents,
    marked_split,
    marked_vocabulary,
    read_with_webdataset,
)

VOCABULARY = marked_vocabulary(np.random.default_rng(0))
KEY = derive_key(1, "corpus")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return marked_split(tmp_path / "train", marked_documents(np.random.default_rng(0), 300), per_block=9)


def read(samples: BertSamples | SegmentSamples, epoch: int) -> PairBatch:
    count = samples.count
    return samples.read(SampleIds(np.full(count, KEY), np.full(count, epoch), np.arange(count)))


def halves(pairs: PairBatch, row: int) -> tuple[list[int], list[int]]:
    first, second = np.flatnonzero(pairs.tokens[row] == VOCABULARY.sep_id)
    return pairs.tokens[row, 1:first].tolist(), pairs.tokens[row, first + 1 : second].tolist()


def test_swapped_pairs_are_next_pairs_in_the_other_order(manifest, tmp_path):
    """The same cuts and lengths as without the swap; half of them swapped, none with foreign text."""
    reader = BlockReader(manifest)
    index = open_pair_index(reader, 64, 0.1, tmp_path, swapped=True)
    samples = BertSamples(SentenceTables(reader), index, VOCABULARY, 64, swapped=True)
    document = np.full(1 << 16, -1)
    for number, tokens in enumerate(
        part
        for block in read_with_webdataset(manifest.directory)
        for part in np.split(block.tokens, np.cumsum(block.document_lengths)[:-1])
    ):
        document[tokens] = number
    labels = []
    for epoch in range(3):
        pairs = read(samples, epoch)
        for row in range(samples.count):
            a, b = halves(pairs, row)
            assert len({*document[a], *document[b]}) == 1
            swapped = bool(pairs.next_sentence_labels[row])
            first, second = (b, a) if swapped else (a, b)
            assert first[-1] < second[0], "marked tokens ascend within a document"
            if len(a) + len(b) < 61:
                assert first[-1] + 1 == second[0]
            labels.append(swapped)
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / np.sqrt(len(labels))


def test_swapping_needs_no_second_document(tmp_path):
    one = marked_split(tmp_path / "one", [[[10, 11], [12, 13], [14]]], shards=1)
    reader = BlockReader(one)
    with pytest.raises(DataError, match="another document.*sop"):
        open_pair_index(reader, 16, 0.0, tmp_path)
    index = open_pair_index(reader, 16, 0.0, tmp_path, swapped=True)
    pairs = read(BertSamples(SentenceTables(reader), index, VOCABULARY, 16, swapped=True), 0)
    assert sorted(sum(halves(pairs, 0), [])) == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("short", [0.0, 0.3])
def test_segments_are_the_documents_cut_in_order(manifest, tmp_path, short):
    reader = BlockReader(manifest)
    samples = SegmentSamples(reader, open_segments(reader, 32, short, tmp_path), VOCABULARY, 32)
    pairs = read(samples, 0)
    texts = []
    for tokens, mask in zip(pairs.tokens, pairs.padding_mask, strict=True):
        length = int(mask.sum())
        assert mask[:length].all() and (tokens[length:] == VOCABULARY.pad_id).all()
        assert tokens[0] == VOCABULARY.cls_id and tokens[length - 1] == VOCABULARY.sep_id
        texts.append(tokens[1 : length - 1].tolist())
    assert not pairs.token_types.any() and (pairs.next_sentence_labels == IGNORED_LABEL).all()
    stream = np.concatenate([block.tokens for block in read_with_webdataset(manifest.directory)])
    assert sum(texts, []) == stream[stream != EOD].tolist()
    ends = set(stream[np.flatnonzero(stream == EOD) - 1].tolist())
    assert all(not ends & set(text[:-1]) for text in texts), "no segment goes on in another document"
    inner = np.array([len(text) for text in texts if text[-1] not in ends])
    assert (inner >= 2).all() and abs((inner < 30).mean() - short) < 0.06
    for blank, array in zip(samples.blank(), pairs, strict=True):
        assert blank.shape == array[:1].shape and blank.dtype == array.dtype


def test_a_damaged_segment_index_is_named(manifest, tmp_path):
    reader = BlockReader(manifest)
    path = open_segments(reader, 32, 0.0, tmp_path).path
    (path / PIECES_NAME).write_bytes((path / PIECES_NAME).read_bytes()[:-8])
    with pytest.raises(DataError, match=f"{path} is damaged"):
        open_segments(reader, 32, 0.0, tmp_path)


def write_integers(directory: Path) -> list[list[int]]:
    """A corpus of integers as nobody splits into sentences: no sent.bin in it."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 20, size=rng.integers(5, 120)).tolist() for _ in range(80)]
    directory.mkdir()
    special = {"pad": 20, "cls": 21, "sep": 22, "mask": 23, "eod": 24}
    vocabulary = directory / "vocabulary.json"
    vocabulary.write_text(json.dumps({"kind": "integers", "vocab_size": 25, "special": special}))
    header = Header(
        corpus="protein",
        split="train",
        created_by="tests",
        tokenizer_sha256=load_tokenizer(vocabulary).sha256,
        vocab_size=25,
        eod_id=24,
        sentences=False,
        seed=0,
    )
    (directory / "train").mkdir()
    with ShardWriter(directory / "train" / "train-00000.tar", header, 0) as writer:
        for at in range(0, len(rows), 16):
            some = [[*row, 24] for row in rows[at : at + 16]]
            writer.write_block(sum(some, []), [len(row) for row in some], None)
    write_manifest(directory / "train", header, [(writer.info, writer.rows)])
    assert not load_manifest(directory / "train").sentences
    return rows


def test_masked_integers_without_sentences(tmp_path):
    rows = write_integers(tmp_path / "corpus")

    def config(**data: object) -> StreamConfig:
        corpora = [{"name": "c", "path": str(tmp_path / "corpus")}]
        batch = {"micro_batch_size": 4, "global_batch_size": 8, "seq_length": 32}
        return StreamConfig.model_validate(
            {"kind": "bert", "batch": batch, "data": {"corpora": corpora, **data}}
        )

    with pytest.raises(DataError, match="no sentence boundaries.*sentence_pairs: none"):
        open_stream(config(), cache=tmp_path / "cache")
    masking = {"short_sequence_probability": 0.0, "mask_token_share": 0.5, "random_token_share": 0.0}
    seen = set()
    kept = hidden = 0
    with open_stream(config(sentence_pairs="none", masking=masking), cache=tmp_path / "cache") as stream:
        for _ in range(60):
            for batch in next(stream):
                tokens = batch["tokens"].copy()
                shown = tokens.ravel()[batch["masked_positions"]]
                assert set(shown[shown != batch["masked_labels"]].tolist()) <= {23}
                kept, hidden = kept + int((shown != 23).sum()), hidden + int((shown == 23).sum())
                tokens.ravel()[batch["masked_positions"]] = batch["masked_labels"]
                assert (batch["next_sentence_labels"] == IGNORED_LABEL).all()
                for row, mask in zip(tokens, batch["padding_mask"], strict=True):
                    seen.add(tuple(row[mask][1:-1].tolist()))
    assert seen == {tuple(row[at : at + 30]) for row in rows for at in range(0, len(row), 30)}
    assert abs(hidden / (hidden + kept) - 0.5) < 0.06


TINY = Path(__file__).resolve().parents[3] / "configs" / "bert" / "tiny.yaml"


def test_keys_of_the_other_kind_and_shares_over_one_are_refused():
    with pytest.raises(ConfigError, match="data.packing is for model.kind: gpt"):
        load_config(TINY, ["data.packing=best_fit"])
    with pytest.raises(ConfigError, match="mask_token_share and random_token_share add up to 1.1"):
        load_config(TINY, ["data.masking.mask_token_share=1.0"])
    with pytest.raises(ConfigError, match="data.sentence_pairs is for model.kind: bert"):
        load_config(TINY.parents[1] / "gpt" / "tiny.yaml", ["data.sentence_pairs=none"])
