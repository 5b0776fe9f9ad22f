from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.prepare import PrepareOptions, prepare
from data_tools.shard_format import load_manifest
from data_tools.shard_reader import Block
from data_tools.tokenizer import Tokenizer, corpus_tokenizer
from data_tools.verify import verify_corpus
from data_tools.verify_shard import Rules, broken_rules
from tests.unit.data_tools.support import make_texts, write_jsonl


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("verify")
    source = write_jsonl(directory / "d.jsonl", make_texts(60))
    options = PrepareOptions(
        name="c", sentences=True, validation_fraction=0.2, block_bytes=1024, shard_bytes=8_000
    )
    prepare([source], tokenizer.path, directory / "c", options)
    return directory / "c"


@pytest.fixture
def corpus(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "c"))


def data_files(corpus: Path) -> list[Path]:
    return sorted(path for path in corpus.rglob("*") if path.is_file() and path.name != "prepare.json")


def test_a_whole_corpus_has_no_problem(corpus: Path) -> None:
    assert verify_corpus(corpus) == []
    assert len(data_files(corpus)) > 6


def test_any_flipped_bit_is_found(corpus: Path) -> None:
    rng = random.Random(0)
    for path in data_files(corpus):
        raw = path.read_bytes()
        # The ends, which hold headers and padding, and places in between.
        positions = {
            0,
            1,
            100,
            511,
            512,
            len(raw) - 1,
            len(raw) - 600,
            *(rng.randrange(len(raw)) for _ in range(25)),
        }
        for position in sorted(p for p in positions if 0 <= p < len(raw)):
            damaged = bytearray(raw)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            problems = verify_corpus(corpus)
            assert problems and str(path.parent) in "".join(problems), f"{path.name}, byte {position}"
        path.write_bytes(raw)
    assert verify_corpus(corpus) == []


def test_any_truncation_is_found(corpus: Path) -> None:
    for path in data_files(corpus):
        raw = path.read_bytes()
        for length in {0, 1, 512, len(raw) // 2 // 512 * 512, len(raw) - 512, len(raw) - 1}:
            if 0 <= length < len(raw):
                path.write_bytes(raw[:length])
                assert verify_corpus(corpus), f"{path.name} cut to {length}"
        path.write_bytes(raw)


def test_a_missing_file_is_found(corpus: Path) -> None:
    for path in data_files(corpus):
        raw = path.read_bytes()
        path.unlink()
        assert any(path.name in problem for problem in verify_corpus(corpus))
        path.write_bytes(raw)
    shutil.rmtree(corpus / "validation")
    assert any("validation" in problem for problem in verify_corpus(corpus))


def test_a_tokenizer_that_all_splits_lack_is_one_problem(corpus: Path) -> None:
    corpus_tokenizer(corpus).unlink()
    assert len(verify_corpus(corpus)) == 1


def test_the_damaged_block_is_named_and_the_others_are_not(corpus: Path) -> None:
    manifest = load_manifest(corpus / "train")
    number = next(i for i, row in enumerate(manifest.blocks) if row["shard"] == 1 and row["key"] == 1)
    path = manifest.shard_path(1)
    raw = bytearray(path.read_bytes())
    raw[manifest.layout(number).tok.offset + 7] ^= 1
    path.write_bytes(raw)
    problems = verify_corpus(corpus)
    layout = manifest.layout(number)
    place = f"{layout.tok.offset} to {layout.sent.offset + layout.sent.length}"
    assert problems == [
        f"shard {path} is damaged (hash differs)",
        f"shard {path}, block 000001: the tokens are damaged (hash differs), somewhere in bytes {place}",
    ]
    assert verify_corpus(corpus, workers=2) == problems


def test_the_damaged_byte_between_blocks_is_named(corpus: Path) -> None:
    manifest = load_manifest(corpus / "train")
    path = manifest.shard_path(0)
    raw = path.read_bytes()
    layout = manifest.layout(0)
    places = {
        3: "__meta__",
        layout.doc.offset - 400: "the header of 000000.doc.bin",
        layout.doc.offset + layout.doc.length: "the padding after 000000.doc.bin",
        len(raw) - 1: "the end of the tar",
    }
    for position, name in places.items():
        damaged = bytearray(raw)
        damaged[position] ^= 8
        path.write_bytes(damaged)
        assert verify_corpus(corpus) == [
            f"shard {path} is damaged (hash differs)",
            f"shard {path}, byte {position}, in {name}: not what was written",
        ]


def test_a_cut_shard_names_the_first_block_that_is_lost(corpus: Path) -> None:
    manifest = load_manifest(corpus / "train")
    path = manifest.shard_path(0)
    blocks = manifest.shards[0].blocks
    path.write_bytes(path.read_bytes()[: manifest.layout(1).tok.offset + 10])
    problems = verify_corpus(corpus)
    assert "bytes, its manifest says" in problems[0]
    assert f"block 000001 and those after it, {blocks - 1} in all, lie beyond the end" in problems[1]


def test_provenance_of_other_documents_is_found(corpus: Path) -> None:
    """Right hashes do not help: the rows must be about the documents of their shard."""
    train = corpus / "train"
    one, two = train / "train-00000.parquet", train / "train-00001.parquet"
    one.write_bytes(two.read_bytes())
    assert any(f"provenance {one}" in problem for problem in verify_corpus(corpus))
    content = json.loads((train / "manifest.json").read_text())
    content["shards"][0]["provenance"] = {**content["shards"][1]["provenance"], "path": one.name}
    (train / "manifest.json").write_text(json.dumps(content))
    assert f"provenance {one} is of other documents than its shard" in verify_corpus(corpus)


def test_a_shard_that_no_manifest_lists_is_found(corpus: Path) -> None:
    stranger = corpus / "train" / "train-00099.tar"
    shutil.copy(corpus / "train" / "train-00000.tar", stranger)
    assert verify_corpus(corpus) == [f"{stranger} is a shard that manifest.json does not list"]


def test_swapped_shards_are_found(corpus: Path) -> None:
    one, two = corpus / "train" / "train-00000.tar", corpus / "train" / "train-00001.tar"
    one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_bytes)
    two.write_bytes(one_bytes)
    assert verify_corpus(corpus)


def test_a_rebuilt_manifest_is_found(corpus: Path) -> None:
    path = corpus / "train" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 99}))
    assert verify_corpus(corpus) == [f"{corpus / 'train'}: manifest.json is not the one that prepare wrote"]


def test_a_directory_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a prepared corpus"):
        verify_corpus(tmp_path)


GOOD = {
    "tokens": [10, 11, 5, 12, 5],
    "document_lengths": [3, 2],
    "sentence_counts": [2, 1],
    "sentence_lengths": [1, 1, 1],
}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({}, None),
        ({"tokens": [10, 11, 12, 12, 5]}, "eod does not stand at the end"),
        ({"tokens": [5, 11, 5, 12, 5]}, "eod does not stand at the end"),
        ({"tokens": [4, 11, 5, 12, 5]}, "a special id stands inside"),
        ({"tokens": [10, 99, 5, 12, 5]}, "token id 99 is outside the vocabulary of 50"),
        ({"document_lengths": [4, 1]}, "no token before its eod"),
        ({"sentence_lengths": [2, 1, 1]}, "do not sum to their document's length"),
        ({"sentence_lengths": [2, 0, 1]}, "a document or a sentence is empty"),
        ({"sentence_counts": [3, 0]}, "a document or a sentence is empty"),
    ],
)
def test_rules_of_the_format(change: dict[str, list[int]], rule: str | None) -> None:
    block = Block(**{key: np.array(value, dtype=np.uint32) for key, value in (GOOD | change).items()})
    found = list(broken_rules(block, Rules(50, 5, (0, 2, 3, 4, 5))))
    assert found == [] if rule is None else any(rule in line for line in found)
