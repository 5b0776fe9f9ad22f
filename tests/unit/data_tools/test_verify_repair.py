"""manifest.json and blocks.npy made again from the shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_tools.cli import main
from data_tools.errors import DataError
from data_tools.prepare import PrepareOptions, prepare
from data_tools.repair import repair_manifests
from data_tools.shard_format import load_manifest
from data_tools.tokenizer import Tokenizer
from data_tools.verify import verify_corpus
from tests.unit.data_tools.support import make_texts, write_jsonl


def make_corpus(directory: Path, tokenizer: Tokenizer, sentences: bool) -> Path:
    source = write_jsonl(directory / "d.jsonl", make_texts(60))
    options = PrepareOptions(
        name="named",
        sentences=sentences,
        validation_fraction=0.2,
        block_bytes=1024,
        shard_bytes=8_000,
        seed=77,
    )
    prepare([source], tokenizer.path, directory / "c", options)
    return directory / "c"


@pytest.fixture(scope="module", params=[True, False], ids=["sentences", "plain"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> Path:
    return make_corpus(tmp_path_factory.mktemp("repair"), tokenizer, request.param)


@pytest.fixture
def corpus(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "c"))


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


TABLES = ("train/manifest.json", "train/blocks.npy", "validation/manifest.json", "validation/blocks.npy")


@pytest.mark.parametrize("lost", [TABLES[:1], TABLES[1:2], TABLES])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_lost_tables_come_back_byte_by_byte(
    corpus: Path, whole: Path, lost: tuple[str, ...], damage: str
) -> None:
    for name in lost:
        path = corpus / name
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-100])
        else:
            flip(path, path.stat().st_size - 30)
    assert verify_corpus(corpus)
    notes = repair_manifests(corpus)
    assert sum("the very same as before" in note for note in notes) == len(notes) == 2
    assert content(corpus) == content(whole)


def test_without_any_record_a_good_manifest_is_kept(corpus: Path) -> None:
    (corpus / "prepare.json").unlink()
    with pytest.raises(DataError, match="--repair-manifest"):
        verify_corpus(corpus)
    before = content(corpus / "train")
    repair_manifests(corpus)
    assert content(corpus / "train") == before
    assert verify_corpus(corpus) == []


def test_without_any_record_and_manifest_what_is_lost_is_said(corpus: Path, whole: Path) -> None:
    (corpus / "prepare.json").write_text("{")
    for name in TABLES:
        (corpus / name).unlink()
    (corpus / "train" / "train-00001.parquet").unlink()
    notes = "\n".join(repair_manifests(corpus))
    assert "prepare.json.damaged" in notes and "seed could not be recovered" in notes
    assert "train-00001.parquet: where the documents of its shard come from is lost" in notes
    assert "nothing proves" in notes
    assert verify_corpus(corpus) == []
    old, new = load_manifest(whole / "train"), load_manifest(corpus / "train")
    assert np.array_equal(old.blocks, new.blocks)
    assert (new.tokens, new.documents, new.sentences) == (old.tokens, old.documents, old.sentences)
    assert [shard.xxh3_128 for shard in new.shards] == [shard.xxh3_128 for shard in old.shards]
    assert new.shards[1].provenance is None and new.shards[0].provenance == old.shards[0].provenance
    again = repair_manifests(corpus)
    assert sum("the very same as before" in note for note in again) == 2


def test_a_damaged_shard_is_never_blessed(corpus: Path, whole: Path) -> None:
    manifest = load_manifest(whole / "train")
    shard = manifest.shard_path(0).name
    token = manifest.layout(1).tok.offset + 4
    for position in (5, 600, token, token - 512, manifest.shards[0].bytes - 3):
        for lost in ((), TABLES[:1], TABLES[:2], ("prepare.json", "train/manifest.json"), ("prepare.json",)):
            for name in lost:
                (corpus / name).unlink()
            flip(corpus / "train" / shard, position)
            before = content(corpus)
            with pytest.raises(DataError, match=f"{shard}|a shard or its provenance is not what was written"):
                repair_manifests(corpus)
            assert content(corpus) == before
            shutil.rmtree(corpus)
            shutil.copytree(whole, corpus)


def test_a_missing_shard_is_named(corpus: Path) -> None:
    shutil.rmtree(corpus / "validation")
    with pytest.raises(DataError, match="validation is gone"):
        repair_manifests(corpus)
    shutil.copytree(corpus / "train", corpus / "validation")
    (corpus / "train" / "train-00000.tar").unlink()
    (corpus / "train" / "manifest.json").unlink()
    with pytest.raises(DataError, match="of at least"):
        repair_manifests(corpus)
    (corpus / "prepare.json").unlink()
    with pytest.raises(DataError, match="train-00000.tar is missing, but there is"):
        repair_manifests(corpus)


def test_shards_of_another_corpus_are_refused(
    corpus: Path, tmp_path: Path, tokenizer: Tokenizer, whole: Path
) -> None:
    sentences = load_manifest(whole / "train").sentences
    (tmp_path / "other").mkdir()
    other = make_corpus(tmp_path / "other", tokenizer, not sentences)
    shutil.copy(other / "train" / "train-00001.tar", corpus / "train" / "train-00001.tar")
    (corpus / "prepare.json").unlink()
    for name in TABLES:
        (corpus / name).unlink()
    with pytest.raises(DataError, match="shards disagree"):
        repair_manifests(corpus)
    shutil.copy(other / "validation" / "validation-00000.tar", corpus / "train" / "train-00001.tar")
    with pytest.raises(DataError, match="says split 'validation'"):
        repair_manifests(corpus)


def test_the_command(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "train" / "manifest.json").unlink()
    with pytest.raises(DataError, match="1 problem"):
        main(["verify", str(corpus)])
    assert "--repair-manifest" in capsys.readouterr().err
    assert main(["verify", str(corpus), "--repair-manifest", "--workers", "2"]) == 0
    out = capsys.readouterr().out
    assert "the very same as before" in out and "every file is as it was written" in out
    assert json.loads((corpus / "train" / "manifest.json").read_text())["seed"] == 77
