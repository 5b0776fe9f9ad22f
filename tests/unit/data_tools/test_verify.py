from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.prepare import PrepareOptions, prepare
from data_tools.shard_format import Header, ShardWriter, load_manifest, write_manifest
from data_tools.shard_reader import Block
from data_tools.tokenizer import Tokenizer
from data_tools.verify import broken_rules, verify_corpus
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


def test_the_damaged_block_is_named_and_the_others_are_not(corpus: Path) -> None:
    manifest = load_manifest(corpus / "train")
    number = next(i for i, row in enumerate(manifest.blocks) if row["shard"] == 1 and row["key"] == 1)
    path = manifest.shard_path(1)
    raw = bytearray(path.read_bytes())
    raw[manifest.layout(number).tok.offset + 7] ^= 1
    path.write_bytes(raw)
    problems = verify_corpus(corpus)
    assert problems == [
        f"shard {path} is damaged (hash differs)",
        f"shard {path}, block 000001: the tokens are damaged (hash differs)",
    ]


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
def test_rules_of_the_format(tmp_path: Path, change: dict[str, list[int]], rule: str | None) -> None:
    header = Header(
        corpus="c",
        split="train",
        created_by="t",
        tokenizer_sha256="0" * 64,
        vocab_size=50,
        eod_id=5,
        sentences=True,
        seed=0,
    )
    with ShardWriter(tmp_path / "train-00000.tar", header, 0) as writer:
        writer.write_block(
            GOOD["tokens"], GOOD["document_lengths"], (GOOD["sentence_counts"], GOOD["sentence_lengths"])
        )
    write_manifest(tmp_path, header, [(writer.info, writer.rows)])
    block = Block(**{key: np.array(value, dtype=np.uint32) for key, value in (GOOD | change).items()})
    found = list(broken_rules(block, load_manifest(tmp_path), reserved=(0, 2, 3, 4, 5)))
    assert found == [] if rule is None else any(rule in line for line in found)
