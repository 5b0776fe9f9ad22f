from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_tools.errors import DataError
from data_tools.shard_format import (
    BLOCK_DTYPE,
    BLOCKS_NAME,
    MANIFEST_NAME,
    Header,
    Manifest,
    ShardWriter,
    block_layout,
    load_manifest,
    token_dtype,
    write_manifest,
)
from data_tools.shard_reader import read_block


def make_header(vocab_size: int = 1000, sentences: bool = True) -> Header:
    return Header(
        corpus="c", split="train", created_by="test", tokenizer_sha256="0" * 64,
        vocab_size=vocab_size, eod_id=5, sentences=sentences, seed=1,
    )  # fmt: skip


def write_split(directory: Path, header: Header, shards: int = 2, blocks: int = 3) -> Manifest:
    """Blocks of two documents, with lengths that fill no tar block evenly."""
    written = []
    directory.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with ShardWriter(directory / f"train-{shard:05d}.tar", header, shard) as writer:
            for block in range(blocks):
                body = list(range(10, 260 + block + shard))
                tokens = [*body, 5, 11, header.vocab_size - 1, 5]
                sentences = ([2, 1], [1, len(body) - 1, 2]) if header.sentences else None
                writer.write_block(tokens, [len(body) + 1, 3], sentences)
        written.append((writer.info, writer.rows))
    write_manifest(directory, header, written)
    return load_manifest(directory)


@pytest.mark.parametrize("vocab_size", [1000, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("sentences", [True, False])
def test_layout_agrees_with_tarfile_and_webdataset(tmp_path: Path, vocab_size: int, sentences: bool) -> None:
    manifest = write_split(tmp_path, make_header(vocab_size, sentences))
    assert (
        manifest.token_dtype == np.dtype("<u2" if vocab_size <= 65_536 else "<u4") == token_dtype(vocab_size)
    )
    for shard in range(2):
        path = manifest.shard_path(shard)
        with tarfile.open(path) as tar:
            members = {m.name: (m.offset_data, m.size) for m in tar}
            assert all((m.mtime, m.uid, m.gid, m.uname, m.pax_headers) == (0, 0, 0, "", {}) for m in tar)
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
        rows = np.flatnonzero(manifest.blocks["shard"] == shard)
        assert [sample["__key__"] for sample in samples] == [f"{k:06d}" for k in range(3)]
        for sample, number in zip(samples, rows, strict=True):
            layout = manifest.layout(int(number))
            assert layout == block_layout(manifest.blocks[number], sentences, manifest.token_dtype.itemsize)
            raw = path.read_bytes()
            for name in ("tok", "doc", "sent"):
                place = getattr(layout, name)
                if place is None:
                    assert name == "sent" and "sent.bin" not in sample
                    continue
                assert members[f"{sample['__key__']}.{name}.bin"] == tuple(place)
                assert raw[place.offset : place.offset + place.length] == sample[f"{name}.bin"]
            assert read_block(manifest, int(number)).tokens.tobytes() == sample["tok.bin"]


def test_meta_explains_a_lone_shard(tmp_path: Path) -> None:
    manifest = write_split(tmp_path, make_header(70_000))
    with tarfile.open(manifest.shard_path(0)) as tar:
        first = tar.next()
        assert first is not None and first.name == "__meta__"
        file = tar.extractfile(first)
        assert file is not None
        assert json.load(file) == {
            "format_version": 1, "tokenizer_sha256": "0" * 64, "vocab_size": 70_000,
            "dtype": "uint32", "eod_id": 5, "split": "train",
        }  # fmt: skip


def test_manifest_totals(tmp_path: Path) -> None:
    manifest = write_split(tmp_path, make_header())
    assert (manifest.documents, manifest.sentence_count, len(manifest.blocks)) == (12, 18, 6)
    assert manifest.tokens == sum(250 + b + s + 4 for b in range(3) for s in range(2))
    assert manifest.blocks.dtype == BLOCK_DTYPE and BLOCK_DTYPE.itemsize == 44
    assert [shard.path for shard in manifest.shards] == ["train-00000.tar", "train-00001.tar"]
    assert not manifest.blocks.flags.writeable


def test_the_same_blocks_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write_split(tmp_path / name, make_header()) for name in ("one", "two"))
    assert one.hash == two.hash
    for name in ("train-00000.tar", "train-00001.tar", MANIFEST_NAME, BLOCKS_NAME):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_incomplete_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards at .*nothing: cannot read manifest\.json"):
        load_manifest(tmp_path / "nothing")
    write_split(tmp_path, make_header())
    shard = tmp_path / "train-00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10240])
    with pytest.raises(
        DataError, match=rf"train-00001\.tar has {len(whole) - 10240} bytes, its manifest says {len(whole)}"
    ):
        load_manifest(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r"no shard .*train-00001\.tar"):
        load_manifest(tmp_path)
    shard.write_bytes(whole)
    load_manifest(tmp_path)
    (tmp_path / BLOCKS_NAME).unlink()
    with pytest.raises(DataError, match=r"cannot read the block table .*blocks\.npy"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version is 2, this release reads 1"),
        ({"tokens": 1}, "tokens is 1, the blocks hold"),
        ({"documents": 13}, "documents is 13, the blocks hold 12"),
        ({"vocab_size": 70_000}, "dtype uint16 does not go with vocab_size 70000"),
        ({"blocks_xxh3": "0" * 32}, r"blocks\.npy does not belong to its manifest\.json"),
        ({"shards": []}, "no blocks"),
        ({"shards": [{"path": "x"}]}, "not a manifest, or damaged"),
        ({"blocks": 7}, "6 rows"),
    ],
)
def test_an_inconsistent_manifest_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write_split(tmp_path, make_header())
    edit_manifest(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        load_manifest(tmp_path)


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, make_header())
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest, or damaged"):
        load_manifest(tmp_path)


def test_a_tar_of_short_documents_is_hardly_larger_than_its_tokens(tmp_path: Path) -> None:
    header = Header(
        corpus="c",
        split="train",
        created_by="test",
        tokenizer_sha256="0" * 64,
        vocab_size=32_000,
        eod_id=5,
        sentences=False,
        seed=1,
    )
    documents, blocks = (1 << 19) // 200, 16
    tokens = np.full((documents, 200), 7, dtype=np.uint16)
    tokens[:, -1] = header.eod_id
    with ShardWriter(tmp_path / "s.tar", header, 0) as writer:
        for _ in range(blocks):
            writer.write_block(tokens.ravel(), np.full(documents, 200), None)
    assert (tmp_path / "s.tar").stat().st_size < 1.015 * blocks * tokens.nbytes
