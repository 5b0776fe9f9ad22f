from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_tools.cli import main
from data_tools.errors import DataError
from data_tools.merge import merge_corpora
from data_tools.prepare import PrepareOptions, prepare
from data_tools.provenance import read_provenance
from data_tools.repair import repair_manifests
from data_tools.shard_format import load_manifest
from data_tools.shard_reader import iterate_documents
from data_tools.tokenizer import Tokenizer
from data_tools.verify import verify_corpus
from tests.unit.data_tools.support import make_texts, write_jsonl


def make(
    directory: Path, tokenizer: Tokenizer, seed: int, validation: float = 0.2, sentences: bool = True
) -> Path:
    source = write_jsonl(directory / f"{seed}.jsonl", make_texts(40, seed))
    options = PrepareOptions(
        name=f"part{seed}",
        sentences=sentences,
        validation_fraction=validation,
        block_bytes=1024,
        shard_bytes=8_000,
    )
    prepare([source], tokenizer.path, directory / f"c{seed}", options)
    return directory / f"c{seed}"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> list[Path]:
    directory = tmp_path_factory.mktemp("merge")
    return [make(directory, tokenizer, seed, 0.0 if seed == 2 else 0.2) for seed in (1, 2, 3)]


def stored(corpus: Path, split: str) -> list[list[int]]:
    if not (corpus / split).exists():
        return []
    return [tokens.tolist() for tokens, _ in iterate_documents(load_manifest(corpus / split))]


def test_a_merged_corpus_holds_every_document_in_order(tmp_path: Path, parts: list[Path]) -> None:
    out = tmp_path / "merged"
    record, fresh = merge_corpora(parts, out, "all")
    assert fresh and verify_corpus(out) == []
    for split in ("train", "validation"):
        assert stored(out, split) == [tokens for part in parts for tokens in stored(part, split)]
    manifest = load_manifest(out / "train")
    assert (manifest.corpus, manifest.created_by) == ("all", "headwater data merge")
    assert [shard.path for shard in manifest.shards] == [
        f"train-{i:05d}.tar" for i in range(len(manifest.shards))
    ]
    assert len(manifest.shards) == sum(len(load_manifest(part / "train").shards) for part in parts)
    assert record["records"]["documents"] == 120
    assert record["splits"]["train"]["documents"] + record["splits"]["validation"]["documents"] == 120


def test_stock_webdataset_reads_it_and_provenance_fits(tmp_path: Path, parts: list[Path]) -> None:
    out = tmp_path / "merged"
    merge_corpora(parts, out, "all")
    files = set()
    for shard in load_manifest(out / "train").shards:
        lengths = [
            np.frombuffer(sample["doc.bin"], dtype="<u4")
            for sample in webdataset.WebDataset(str(out / "train" / shard.path), shardshuffle=False)
        ]
        rows = list(read_provenance(out / "train" / shard.provenance.path))
        assert [row.tokens for row in rows] == np.concatenate(lengths).tolist()
        files |= {Path(row.file).name for row in rows}
    assert files == {"1.jsonl", "2.jsonl", "3.jsonl"}


def test_links_by_default_and_copies_where_they_cannot_be(
    tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def inode(corpus: Path) -> int:
        return (corpus / "train" / "train-00000.tar").stat().st_ino

    merge_corpora(parts, tmp_path / "links", "m")
    assert inode(tmp_path / "links") == inode(parts[0])
    merge_corpora(parts, tmp_path / "copies", "m", "copy")
    assert inode(tmp_path / "copies") != inode(parts[0])

    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    merge_corpora(parts, tmp_path / "auto", "m")
    assert verify_corpus(tmp_path / "auto") == []
    with pytest.raises(DataError, match="use --copy"):
        merge_corpora(parts, tmp_path / "no", "m", "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["auto", "copies", "links"]


def test_a_rerun_is_done_at_once_and_another_merge_is_refused(tmp_path: Path, parts: list[Path]) -> None:
    out = tmp_path / "m"
    record, _ = merge_corpora(parts[:2], out, "m")
    assert merge_corpora(parts[:2], out, "m") == (record, False)
    for inputs, name in ((parts, "m"), (parts[1::-1], "m"), (parts[:2], "other")):
        with pytest.raises(DataError, match="choose another --out"):
            merge_corpora(inputs, out, name)


def test_what_does_not_go_together_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, parts: list[Path]
) -> None:
    plain = make(tmp_path, tokenizer, 5, sentences=False)
    (tmp_path / "empty").mkdir()
    cases = [
        ([parts[0], plain], "has sentences False"),
        ([parts[0], parts[0]], "name each corpus once"),
        (parts[:1], "at least two"),
        ([parts[0], tmp_path / "empty"], "no shards at"),
    ]
    for inputs, message in cases:
        with pytest.raises(DataError, match=message):
            merge_corpora(inputs, tmp_path / "m", "m")
    assert not (tmp_path / "m").exists()


def test_a_merged_corpus_can_be_merged_and_repaired(tmp_path: Path, parts: list[Path]) -> None:
    merge_corpora(parts[:2], tmp_path / "two", "two")
    merge_corpora([tmp_path / "two", parts[2]], tmp_path / "three", "three", "copy")
    assert stored(tmp_path / "three", "train") == [t for part in parts for t in stored(part, "train")]
    before = (tmp_path / "three" / "train" / "manifest.json").read_bytes()
    (tmp_path / "three" / "train" / "manifest.json").unlink()
    assert "the very same as before" in repair_manifests(tmp_path / "three")[0]
    assert (tmp_path / "three" / "train" / "manifest.json").read_bytes() == before


def test_the_command(tmp_path: Path, parts: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["merge", *map(str, parts), "--out", str(tmp_path / "all")]
    for again in (False, True):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert ("already complete" in out) == again and "train" in out and "validation" in out
    shutil.rmtree(tmp_path / "all" / "validation")
    with pytest.raises(DataError, match="no shards at"):
        main(argv)
