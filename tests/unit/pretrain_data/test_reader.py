from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.shard_format import Manifest, load_manifest
from pretrain.data.access import local
from pretrain.data.access.local import MAX_PIECE_BYTES, LocalShards
from pretrain.data.blocks import BadBlock
from pretrain.data.reader import BlockReader
from pretrain.data.sentences import SentenceTables, read_table
from tests.unit.pretrain_data.support import marked_documents, marked_split, raw_stream, read_with_webdataset


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return marked_split(tmp_path / "train", marked_documents(np.random.default_rng(0), 50))


def read(reader: BlockReader, start: int, length: int) -> np.ndarray:
    return reader.read(np.array([start]), length)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_ranges_equal_the_stream_read_by_webdataset(manifest):
    stream = raw_stream(manifest.directory)
    reader = BlockReader(manifest)
    rng = np.random.default_rng(1)
    starts = rng.integers(0, len(stream), 200)
    lengths = rng.integers(0, len(stream) // 2, 200)
    ranges = [np.take(stream, np.arange(a, a + n), mode="wrap") for a, n in zip(starts, lengths, strict=True)]
    assert np.array_equal(reader.read(starts, lengths), np.concatenate(ranges))
    rows = reader.read(starts, 37).reshape(200, 37)
    assert rows.dtype == np.uint16
    assert np.array_equal(rows, np.take(stream, starts[:, None] + np.arange(37), mode="wrap"))
    assert np.array_equal(read(reader, 0, 2 * len(stream)), np.tile(stream, 2))


def test_documents_and_sentences_equal_those_read_by_webdataset(manifest):
    reader = BlockReader(manifest)
    blocks = read_with_webdataset(manifest.directory)
    assert len(blocks) == len(manifest.blocks) > 10
    for number, raw in enumerate(blocks):
        assert np.array_equal(reader.documents(number), raw.document_lengths)
        counts, lengths = reader.sentences(number)
        assert np.array_equal(counts, raw.sentences_per_document)
        assert np.array_equal(lengths, raw.sentence_lengths)


def test_sentence_table_leaves_out_empty_sentences_and_documents(tmp_path):
    documents = [[[10, 11], [], [12]], [], [[]], [[13], [14, 15]]]
    manifest = marked_split(tmp_path / "train", documents, shards=1, per_block=4)
    table = read_table(BlockReader(manifest), 0)
    stream = raw_stream(manifest.directory)
    sentences = [stream[a:b].tolist() for a, b in zip(table.starts, table.ends, strict=True)]
    assert sentences == [[10, 11], [12], [13], [14, 15]]
    assert table.first.tolist() == [0, 2, 4] and table.documents == 2


def test_sentence_tables_stay_within_their_memory(manifest):
    tables = SentenceTables(BlockReader(manifest), max_bytes=400)
    for block in [*range(len(manifest.blocks)), 0, 1, 0]:
        expected = read_table(tables.reader, block)
        assert np.array_equal(tables.table(block).starts, expected.starts)
        assert tables._bytes == sum(table.nbytes for table in tables._tables.values()) <= 400


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_flipped_token_is_found_and_named(manifest):
    block = 7
    row = manifest.blocks[block]
    shard = manifest.shard_path(int(row["shard"]))
    flip_byte(shard, int(row["offset"]) + 20)
    reader = BlockReader(load_manifest(manifest.directory))
    first = int(reader.token_starts[block])
    assert len(read(reader, first - 5, 5)) == 5  # the block before is sound
    with pytest.raises(DataError) as raised:
        read(reader, first - 5, 6)
    message = str(raised.value)
    assert str(shard) in message and f"block {int(row['key']):06d}" in message
    assert f"byte {int(row['offset'])}" in message and "hash" in message
    assert len(read(BlockReader(manifest, verify=False), first, 10)) == 10


@pytest.mark.parametrize("member", ["doc", "sent"])
def test_a_flipped_length_is_found_and_named(manifest, member):
    place = getattr(manifest.layout(3), member)
    shard = manifest.shard_path(int(manifest.blocks[3]["shard"]))
    flip_byte(shard, place.offset + place.length - 4)
    offset = manifest.layout(3).doc.offset
    with pytest.raises(BadBlock, match=f"{shard}.*block 000003.*byte {offset}.*hash"):
        BlockReader(manifest).sentences(3)
    with pytest.raises(BadBlock, match=f"{shard}.*block 000003.*byte {place.offset}.*add up"):
        BlockReader(manifest, verify=False).sentences(3)


def test_lengths_that_still_add_up_are_found_by_their_hash(manifest):
    place = manifest.layout(3).doc
    shard = manifest.shard_path(int(manifest.blocks[3]["shard"]))
    data = bytearray(shard.read_bytes())
    lengths = np.frombuffer(data, "<u4", place.length // 4, place.offset)
    lengths[:2] = lengths[1::-1]  # two documents change their lengths: all sums stay
    assert lengths[0] != lengths[1]
    shard.write_bytes(data)
    BlockReader(manifest, verify=False).documents(3)
    with pytest.raises(BadBlock, match="block 000003.*hash"):
        BlockReader(manifest).documents(3)


def test_a_truncated_shard_is_found_at_opening_and_at_reading(manifest):
    reader = BlockReader(manifest, verify=False)
    shard = manifest.shard_path(1)
    cut = int(manifest.blocks[manifest.blocks["shard"] == 1][-1]["offset"]) + 4
    os.truncate(shard, cut)
    with pytest.raises(DataError, match=str(shard)):
        load_manifest(manifest.directory)
    last = int(np.flatnonzero(manifest.blocks["shard"] == 1)[-1])
    with pytest.raises(DataError, match=f"{shard}.*byte {cut - 4}.*ends too early"):
        read(reader, int(reader.token_starts[last]), 10)


def everything(reader: BlockReader, length: int = 5) -> np.ndarray:
    return reader.read(reader.token_starts[:-1], length)


def fast_reads(reader: BlockReader) -> list[bool]:
    """What `gather` will return, call by call."""
    source, returned = reader._source, []
    gather = source.gather
    source.gather = lambda *arguments: (returned.append(gather(*arguments)), returned[-1])[1]
    return returned


@pytest.mark.parametrize("gone", ["the rest of a page", "pages"])
def test_a_shard_that_is_cut_while_it_is_mapped_is_named(manifest, gone):
    """A process that looked at such pages would find zeros, or be killed."""
    reader = BlockReader(manifest)
    fast, whole = fast_reads(reader), everything(reader)
    offset = int(manifest.blocks["offset"][(block := 6)])
    assert offset % mmap.PAGESIZE and manifest.blocks["shard"][block] == 1
    os.truncate(
        manifest.shard_path(1), offset + 4 if gone == "the rest of a page" else offset & -mmap.PAGESIZE
    )
    with pytest.raises(BadBlock, match=f"{manifest.shard_path(1)}.*byte {offset}: the file ends too early"):
        read(reader, int(reader.token_starts[block]), 5)
    assert np.array_equal(read(reader, int(reader.token_starts[block - 1]), 5), whole[5 * block - 5 :][:5])
    assert fast == [True, False, False]


def test_many_pieces_come_fast_and_the_same_without_a_map(manifest, monkeypatch):
    rng = np.random.default_rng(2)
    starts, lengths = rng.integers(0, manifest.tokens, 700), rng.integers(0, 900, 700)
    reader = BlockReader(manifest)
    fast, expected = fast_reads(reader), reader.read(starts, lengths)
    long = reader.read(starts[:1], MAX_PIECE_BYTES)  # goes round and round, in short pieces
    assert fast == [True, True] and len(long) == MAX_PIECE_BYTES
    monkeypatch.setattr(local, "MAX_PIECE_BYTES", 100)
    assert np.array_equal(reader.read(starts, lengths), expected) and fast[-1] is False
    monkeypatch.undo()
    reader.close()
    monkeypatch.setattr(local.mmap, "mmap", lambda *_, **__: os.stat("/nonexistent"))
    assert np.array_equal(reader.read(starts, lengths), expected) and fast[-1] is False
    monkeypatch.undo()
    monkeypatch.delattr(os, "memfd_create")
    reader.close()
    assert np.array_equal(reader.read(starts, lengths), expected) and fast[-1] is False


def test_processes_that_share_a_reader_after_a_fork_do_not_disturb_each_other(manifest):
    reader = BlockReader(manifest)
    expected = np.tile(everything(reader), 2)
    child = os.fork()
    starts = np.tile(reader.token_starts[:-1], 2)
    order = slice(None) if child else slice(None, None, -1)
    wanted = expected.reshape(-1, 5)[order].ravel()
    wrong = sum(not np.array_equal(reader.read(starts[order], 5), wanted) for _ in range(1000))
    if not child:
        os._exit(wrong != 0)
    assert (os.waitpid(child, 0)[1], wrong) == (0, 0)


def test_a_missing_shard_is_found_at_opening_and_at_reading(manifest):
    manifest.shard_path(2).unlink()
    with pytest.raises(DataError, match=str(manifest.shard_path(2))):
        load_manifest(manifest.directory)
    reader = BlockReader(manifest)
    with pytest.raises(DataError, match=f"{manifest.shard_path(2)}.*No such file"):
        read(reader, int(reader.token_starts[-1]) - 10, 10)


def test_pieces_of_more_shards_than_may_be_open_come_fast_too(tmp_path):
    documents = [[list(range(6, 6 + (6000 if n % 5 == 0 else 200)))] for n in range(25)]
    manifest = marked_split(tmp_path / "train", documents, shards=25, per_block=1)
    assert len({shard.bytes for shard in manifest.shards}) > 1
    starts = np.random.default_rng(3).integers(0, manifest.tokens, 500)
    expected = BlockReader(manifest).read(starts, 3)
    for most in (1, 2, 7):
        before = open_descriptors()
        reader = BlockReader(manifest, source=LocalShards(manifest, max_open=most))
        fast = fast_reads(reader)
        for _ in range(2):
            assert np.array_equal(reader.read(starts, 3), expected)
            assert open_descriptors() <= before + 2 * most + 1
        assert fast == [True, True]


def test_few_descriptors_are_open_and_none_stays(manifest):
    before = open_descriptors()
    reader = BlockReader(manifest, source=LocalShards(manifest, max_open=2))
    for _ in range(3):
        for start in reader.token_starts[:-1]:
            read(reader, int(start), 1)
            assert open_descriptors() <= before + 2 * 2 + 1
    reader.close()
    assert open_descriptors() == before
    read(reader, 0, 1)
    del reader
    assert open_descriptors() == before
