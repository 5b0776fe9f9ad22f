from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.shard_format import Manifest, load_manifest
from pretrain.data.bert_samples import BertSamples, cut_lengths
from pretrain.data.objectives import PairBatch
from pretrain.data.pair_index import PAIRS_NAME, PairIndex, open_pair_index
from pretrain.data.philox import SampleIds, derive_key
from pretrain.data.reader import BlockReader
from pretrain.data.sentences import SentenceTables
from tests.unit.pretrain_data.support import (
    Document,
    marked_documents,
    marked_split,
    marked_vocabulary,
    read_with_webdataset,
)

VOCABULARY = marked_vocabulary(np.random.default_rng(0))
KEY = derive_key(1, "corpus")
SEQ_LENGTH = 64


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return marked_split(tmp_path / "train", marked_documents(np.random.default_rng(0), 400), per_block=9)


def open_samples(manifest: Manifest, cache: Path, seq_length: int = SEQ_LENGTH) -> BertSamples:
    reader = BlockReader(manifest)
    index = open_pair_index(reader, seq_length, 0.1, cache)
    return BertSamples(SentenceTables(reader), index, VOCABULARY, seq_length)


def read(samples: BertSamples, epoch: int) -> PairBatch:
    count = samples.count
    return samples.read(SampleIds(np.full(count, KEY), np.full(count, epoch), np.arange(count)))


def halves(pairs: PairBatch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of A and of B, taken from the [SEP]s; checks the layout on the way."""
    tokens = pairs.tokens[row]
    first, second = np.flatnonzero(tokens == VOCABULARY.sep_id)
    assert tokens[0] == VOCABULARY.cls_id
    assert (tokens[second + 1 :] == VOCABULARY.pad_id).all() and (
        tokens[: second + 1] != VOCABULARY.pad_id
    ).all()
    assert np.array_equal(pairs.padding_mask[row], np.arange(len(tokens)) <= second)
    assert np.array_equal(np.flatnonzero(pairs.token_types[row]), np.arange(first + 1, second + 1))
    return tokens[1:first], tokens[first + 1 : second]


class Places:
    """Where each (unique) token of a marked split stands, from what stock webdataset reads."""

    def __init__(self, directory: Path) -> None:
        self.document = np.full(1 << 16, -1)
        self.sentence = np.full(1 << 16, -1)
        self.is_first = np.zeros(1 << 16, dtype=np.bool_)
        document = sentence = 0
        for block in read_with_webdataset(directory):
            at, lengths = 0, iter(block.sentence_lengths.tolist())
            for sentences in block.sentences_per_document.tolist():
                for _ in range(sentences):
                    length = next(lengths)
                    here = block.tokens[at : at + length]
                    self.document[here], self.sentence[here] = document, sentence
                    self.is_first[here[0]] = True
                    at, sentence = at + length, sentence + 1
                at, document = at + 1, document + 1  # eod
        self.documents = document


def test_pairs_against_the_raw_shards(manifest, tmp_path):
    """Labels tell the truth; A and B are unbroken text of one document each, with the paper's truncation."""
    places = Places(manifest.directory)
    samples = open_samples(manifest, tmp_path / "cache")
    assert samples.count > 300
    random = full = 0
    for epoch in range(3):
        pairs = read(samples, epoch)
        for row in range(samples.count):
            a, b = halves(pairs, row)
            assert len(a) and len(b) and len(a) + len(b) <= SEQ_LENGTH - 3
            assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()
            of_a, of_b = places.document[a], places.document[b]
            assert len(set(of_a)) == len(set(of_b)) == 1
            assert not set(places.sentence[a]) & set(places.sentence[b])
            cut = len(a) + len(b) == SEQ_LENGTH - 3
            if pairs.next_sentence_labels[row]:
                assert of_a[0] != of_b[0]
            else:
                assert of_a[0] == of_b[0] and places.sentence[a[-1]] < places.sentence[b[0]]
                assert cut or (b[0] == a[-1] + 1 and places.is_first[b[0]])
            assert cut or places.is_first[a[0]]
            random += int(pairs.next_sentence_labels[row])
            full += cut
    total = 3 * samples.count
    assert abs(random / total - 0.5) < 4 * 0.5 / np.sqrt(total)
    assert full / total > 0.2


def test_following_pairs_cover_all_text_but_the_truncated(manifest, tmp_path):
    """Runs of an epoch are disjoint, and leave out only documents of one sentence."""
    samples = open_samples(manifest, tmp_path / "cache")
    places = Places(manifest.directory)
    index: PairIndex = samples._index
    sentences = np.zeros(manifest.sentence_count, dtype=np.int64)
    for block, table in enumerate(samples._tables.table(b) for b in range(len(manifest.blocks))):
        base = int(manifest.blocks["sentences"][:block].sum())
        for first, count, _ in index.pairs[index.starts[block] : index.starts[block + 1]].tolist():
            sentences[base + first : base + first + count] += 1
            documents = np.searchsorted(table.first, [first, first + count - 1], side="right")
            assert documents[0] == documents[1] and count >= 2
    per_document = np.bincount(places.document[np.unique(np.flatnonzero(places.is_first))])
    alone = np.repeat(per_document == 1, per_document)
    assert np.array_equal(sentences, np.where(alone, 0, 1))


def test_partners_are_spread_over_documents_and_change_with_the_epoch(manifest, tmp_path):
    places = Places(manifest.directory)
    samples = open_samples(manifest, tmp_path / "cache")
    partners = []
    for epoch in range(2):
        pairs = read(samples, epoch)
        rows = np.flatnonzero(pairs.next_sentence_labels)
        partners.append({int(row): int(places.document[halves(pairs, row)[1][0]]) for row in rows})
    both = partners[0].keys() & partners[1].keys()
    assert 0.15 * samples.count < len(both) < 0.35 * samples.count  # labels are drawn anew
    assert sum(partners[0][row] == partners[1][row] for row in both) < 0.3 * len(
        both
    )  # 8 candidates in a block
    assert len(set(partners[0].values())) > 0.3 * places.documents


def test_short_sequences_come_with_the_asked_probability(tmp_path):
    documents: list[Document] = [[[10, 11]] * 40 for _ in range(300)]
    manifest = marked_split(tmp_path / "train", documents, per_block=20)
    for probability in (0.0, 0.1, 1.0):
        targets = open_pair_index(BlockReader(manifest), 43, probability, tmp_path / "cache").pairs["target"]
        assert targets.min() >= 2 and targets.max() <= 40
        # Short runs leave room for more runs, so among runs their share is larger than among draws.
        if probability == 0.0:
            assert (targets == 40).all()
        elif probability == 1.0:
            assert np.abs(np.bincount(targets, minlength=41)[2:] / len(targets) - 1 / 39).max() < 0.02
        else:
            assert abs((targets < 40).mean() - 0.1) < 0.03


def test_samples_do_not_depend_on_batch_or_order(manifest, tmp_path):
    samples = open_samples(manifest, tmp_path / "cache")
    whole = read(samples, 2)
    rows = np.random.default_rng(5).permutation(samples.count)[:50]
    part = samples.read(SampleIds(np.full(50, KEY), np.full(50, 2), rows))
    for ours, theirs in zip(part, whole, strict=True):
        assert np.array_equal(ours, theirs[rows])


def test_documents_alone_in_their_block_find_partners_in_other_blocks(tmp_path):
    documents = marked_documents(np.random.default_rng(2), 30)
    documents[4] = documents[5] = []  # blocks without text are passed over
    manifest = marked_split(tmp_path / "train", documents, per_block=1)
    places = Places(manifest.directory)
    pairs = read(open_samples(manifest, tmp_path / "cache"), 0)
    rows = np.flatnonzero(pairs.next_sentence_labels)
    assert len(rows) > 10
    for row in rows:
        a, b = halves(pairs, row)
        assert places.document[a[0]] != places.document[b[0]]


def test_blocks_without_text_are_passed_over_but_not_back_to_the_own_block(tmp_path):
    documents: list[Document] = [[[10, 11], [12]], [], [], [[13, 14], [15]]]
    manifest = marked_split(tmp_path / "train", documents, shards=1, per_block=1)
    samples = open_samples(manifest, tmp_path / "cache")
    for epoch in range(40):
        pairs = read(samples, epoch)
        for row in np.flatnonzero(pairs.next_sentence_labels):
            a, b = halves(pairs, row)
            assert (a[0] < 13) != (b[0] < 13)


@pytest.mark.parametrize(
    ("a", "b", "longest", "left"),
    [
        (5, 5, 10, (5, 5)),
        (9, 3, 10, (7, 3)),
        (3, 9, 10, (3, 7)),
        (20, 20, 11, (6, 5)),
        (9, 6, 9, (5, 4)),
        (1, 50, 8, (1, 7)),
    ],
)
def test_truncation_takes_from_the_longer(a, b, longest, left):
    cut_a, cut_b = cut_lengths(a, b, longest)
    assert (a - cut_a, b - cut_b) == left
    while a + b > longest:  # the paper's loop
        a, b = (a - 1, b) if a > b else (a, b - 1)
    assert (a, b) == left


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([[[10, 11], [12], [13, 14]]], "1 document with text.*another document"),
        ([[[10, 11]], [[12]]], "no document with two sentences"),
    ],
)
def test_corpora_that_give_no_pairs_are_refused(tmp_path, documents, message):
    manifest = marked_split(tmp_path / "train", documents, shards=1)
    with pytest.raises(DataError, match=message):
        open_samples(manifest, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(".*")), "no draft is left behind"


def _build_index(directory: Path, cache: Path, barrier) -> None:
    reader = BlockReader(load_manifest(directory))
    barrier.wait(timeout=60)
    index = open_pair_index(reader, SEQ_LENGTH, 0.1, cache)
    assert int(index.starts[-1]) == len(index.pairs) > 0


def test_processes_may_build_the_index_at_once(manifest, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    arguments = (manifest.directory, tmp_path / "cache", barrier)
    processes = [context.Process(target=_build_index, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_index_is_reused_rebuilt_alike_and_keyed_by_its_parameters(manifest, tmp_path):
    cache = tmp_path / "cache"
    first = open_samples(manifest, cache)._index
    content = {path.name: path.read_bytes() for path in first.path.iterdir()}
    stamp = (first.path / PAIRS_NAME).stat().st_mtime_ns
    assert (open_samples(manifest, cache)._index.path / PAIRS_NAME).stat().st_mtime_ns == stamp
    shutil.rmtree(cache)
    again = open_samples(manifest, cache)._index
    assert {path.name: path.read_bytes() for path in again.path.iterdir()} == content
    assert open_samples(manifest, cache, seq_length=32)._index.path != again.path


def test_a_damaged_index_and_an_unwritable_cache_are_named(manifest, tmp_path):
    cache = tmp_path / "cache"
    path = open_samples(manifest, cache)._index.path
    (path / PAIRS_NAME).write_bytes((path / PAIRS_NAME).read_bytes()[:-8])
    with pytest.raises(DataError, match=f"{path}.*delete it"):
        open_samples(manifest, cache)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the sample index"):
        open_samples(manifest, tmp_path / "file")
