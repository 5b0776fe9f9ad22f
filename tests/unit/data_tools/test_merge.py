from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.cli import main
from data_tools.errors import DataError
from data_tools.prepare import PrepareOptions, prepare
from data_tools.provenance import read_provenance
from data_tools.shard_reader import iterate_documents, open_corpus
from data_tools.tokenizer import Tokenizer
from data_tools.verify import verify_corpus
from tests.unit.data_tools.support import make_texts, write_jsonl


def make(directory: Path, name: str, tokenizer: Tokenizer, seed: int, sentences: bool = True) -> Path:
    source = write_jsonl(directory / f"{name}.jsonl", make_texts(60, seed))
    options = PrepareOptions(
        name=name, sentences=sentences, validation_fraction=0.1, shard_bytes=8_000, block_bytes=2_048
    )
    prepare([source], tokenizer.path, directory / name, options)
    return directory / name


def documents(corpus: Path) -> dict[str, list[tuple[list[int], list[int] | None]]]:
    return {
        split: [
            (tokens.tolist(), None if sentences is None else sentences.tolist())
            for tokens, sentences in iterate_documents(manifest)
        ]
        for split, manifest in open_corpus(corpus).items()
    }


@pytest.mark.parametrize("how", [[], ["--copy"]])
def test_a_merge_holds_the_documents_of_all_and_verifies(
    tmp_path: Path, tokenizer: Tokenizer, how: list[str]
) -> None:
    parts = [make(tmp_path, name, tokenizer, seed) for seed, name in enumerate(("a", "b"))]
    out = tmp_path / "whole"
    assert main(["merge", *map(str, parts), "--out", str(out), *how]) == 0
    first, second, whole = documents(parts[0]), documents(parts[1]), documents(out)
    assert whole == {split: first[split] + second[split] for split in ("train", "validation")}
    assert list(verify_corpus(out)) == []
    shard = open_corpus(out)["train"].shard_path(0)
    assert (shard.stat().st_nlink > 1) == (not how)
    for split, manifest in open_corpus(out).items():
        origins = [
            origin
            for info in manifest.shards
            if info.provenance is not None
            for origin in read_provenance(out / split / info.provenance.path)
        ]
        assert [origin.tokens for origin in origins] == [len(tokens) for tokens, _ in whole[split]]


def test_corpora_that_do_not_fit_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    a, b = make(tmp_path, "a", tokenizer, 0), make(tmp_path, "b", tokenizer, 1, sentences=False)
    for corpora, message in [
        ([a, b], "sentences is False, not True; prepare one of them again"),
        ([a, a], "each once"),
        ([a], "two or more"),
        ([a, tmp_path / "none"], "no shards at .*none"),
    ]:
        with pytest.raises(DataError, match=message):
            main(["merge", *map(str, corpora), "--out", str(tmp_path / "whole")])
        assert not (tmp_path / "whole").exists()
