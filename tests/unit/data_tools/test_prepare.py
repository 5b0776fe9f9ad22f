from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_tools import inputs, jsonl
from data_tools import prepare as prepare_module
from data_tools.errors import DataError
from data_tools.prepare import PrepareOptions, prepare
from data_tools.sentences import split_sentences
from data_tools.shard_format import load_manifest
from data_tools.shard_reader import iterate_documents, open_corpus
from data_tools.tokenizer import Tokenizer
from data_tools.verify import verify_corpus
from tests.unit.data_tools.support import make_texts, write_jsonl

ONE = '{"text": "x"}\n'
SMALL = PrepareOptions(
    name="small", sentences=True, validation_fraction=0.1, block_bytes=2048, shard_bytes=20_000, seed=3
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the inputs into many chunks, as a large corpus is."""
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 7_000)
    for module in (prepare_module, inputs):
        monkeypatch.setattr(module, "plan_chunks", lambda paths: jsonl.plan_chunks(paths, 7_000))


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


def stored_texts(corpus: Path, split: str) -> list[str]:
    """Documents of a split as stock webdataset and plain sentencepiece ids give them."""
    tokenizer = Tokenizer.load(corpus / "tokenizer.model")
    texts = []
    for shard in sorted((corpus / split).glob("*.tar")):
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False):
            tokens = np.frombuffer(sample["tok.bin"], dtype="<u2")
            ends = np.cumsum(np.frombuffer(sample["doc.bin"], dtype="<u4"))
            assert ends[-1] == len(tokens)
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                assert tokens[end - 1] == tokenizer.eod_id
                texts.append(tokenizer.decode(tokens[start : end - 1]))
    return texts


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("sentences", [True, False])
def test_webdataset_recovers_every_document(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer, texts: list[str], sentences: bool
) -> None:
    out = tmp_path / "corpus"
    result = prepare([corpus_file], tokenizer.path, out, replace(SMALL, sentences=sentences))
    train, validation = stored_texts(out, "train"), stored_texts(out, "validation")
    assert result.fresh and Counter(train + validation) == Counter(texts)
    assert 10 <= len(validation) <= 60
    assert len(list((out / "train").glob("*.tar"))) > 2
    assert verify_corpus(out) == []
    assert result.record["lines"] == {"lines": 300, "documents": 300, "empty": 0, "bad": 0}


@pytest.mark.usefixtures("small_chunks")
def test_bytes_do_not_depend_on_workers(tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer) -> None:
    made = []
    for workers in (1, 2, 3):
        out = tmp_path / f"workers-{workers}"
        prepare([corpus_file], tokenizer.path, out, SMALL, workers=workers)
        made.append(files_of(out))
    assert made[0] == made[1] == made[2]
    assert {"prepare.json", "tokenizer.model", "train/manifest.json", "train/train-00002.tar"} <= made[
        0
    ].keys()


def test_bytes_do_not_depend_on_chunks_or_batches(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([corpus_file], tokenizer.path, tmp_path / "whole", SMALL)
    monkeypatch.setattr("data_tools.pack._BATCH_CHARACTERS", 500)
    monkeypatch.setattr(prepare_module, "plan_chunks", lambda paths: jsonl.plan_chunks(paths, 3_001))
    prepare([corpus_file], tokenizer.path, tmp_path / "parts", SMALL)
    whole, parts = files_of(tmp_path / "whole"), files_of(tmp_path / "parts")
    del whole["prepare.json"], parts["prepare.json"]  # the input hash is over chunks of a fixed size
    assert whole == parts


def test_documents_are_shuffled_by_the_seed_and_the_split_is_not(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer, texts: list[str]
) -> None:
    orders, splits = [], []
    for seed in (1, 2):
        out = tmp_path / str(seed)
        prepare(
            [corpus_file], tokenizer.path, out, PrepareOptions(name="c", validation_fraction=0.1, seed=seed)
        )
        orders.append([texts.index(text) for text in stored_texts(out, "train")])
        splits.append(set(stored_texts(out, "validation")))
    assert splits[0] == splits[1]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    for order in orders:
        # Rank correlation with the input order; 1/sqrt(270) = 0.06 is one standard deviation of a shuffle.
        assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.25


def test_sentences_are_exact_and_tokenised_by_themselves(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer
) -> None:
    prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
    for manifest in open_corpus(tmp_path / "c").values():
        seen = 0
        for tokens, lengths in iterate_documents(manifest):
            assert lengths is not None and lengths.sum() == len(tokens) - 1
            parts = np.split(tokens[:-1], np.cumsum(lengths)[:-1])
            expected = split_sentences(tokenizer.decode(tokens[:-1]))
            assert [part.tolist() for part in parts] == [tokenizer.encode(sentence) for sentence in expected]
            seen += len(lengths)
        assert seen == manifest.sentence_count > manifest.documents


def test_blocks_end_with_the_document_that_fills_them(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer
) -> None:
    prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
    manifest = load_manifest(tmp_path / "c" / "train")
    longest = max(len(tokens) for tokens, _ in iterate_documents(manifest))
    last_of_shard = np.r_[manifest.blocks["shard"][1:] != manifest.blocks["shard"][:-1], True]
    sizes = manifest.blocks["tokens"].astype(int) * 2
    assert (sizes[~last_of_shard] >= 2048).all() and (sizes < 2048 + 2 * longest).all()


def test_copies_stay_in_one_split_and_are_scattered(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = make_texts(40)
    source = write_jsonl(tmp_path / "d.jsonl", texts * 5)
    prepare([source], tokenizer.path, tmp_path / "c", PrepareOptions(name="c", validation_fraction=0.3))
    train, validation = stored_texts(tmp_path / "c", "train"), stored_texts(tmp_path / "c", "validation")
    assert train and validation and not set(train) & set(validation)
    assert set(Counter(train + validation).values()) == {5}
    neighbours = sum(first == second for first, second in zip(train, train[1:], strict=False))
    assert neighbours < len(train) * 0.2, "copies side by side would fill a batch with one document"


def test_a_rerun_is_complete_and_changes_nothing(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer
) -> None:
    out = tmp_path / "c"
    first = prepare([corpus_file], tokenizer.path, out, SMALL)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = prepare([corpus_file], tokenizer.path, out, SMALL, workers=2)
    assert not again.fresh and again.record == first.record
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    copy = tmp_path / "docs.jsonl"  # the same content, elsewhere and newer
    copy.write_bytes(corpus_file.read_bytes())
    os.utime(copy, ns=(1, 1))
    assert not prepare([copy], tokenizer.path, out, SMALL).fresh


def test_an_output_of_something_else_is_refused(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer
) -> None:
    out = tmp_path / "c"
    prepare([corpus_file], tokenizer.path, out, SMALL)
    before = files_of(out)

    def refuse(message: str, source: Path = corpus_file, options: PrepareOptions = SMALL) -> None:
        with pytest.raises(DataError, match=message):
            prepare([source], tokenizer.path, out, options)

    refuse("was made with name 'small', this is 'other'", options=replace(SMALL, name="other"))
    same_size = corpus_file.read_bytes().replace(b"Document 7.", b"Document X.")
    other = tmp_path / corpus_file.name
    other.write_bytes(same_size)
    refuse(r"was made from another docs\.jsonl", source=other)
    assert files_of(out) == before
    (out / "train" / "train-00000.tar").unlink()
    refuse(r"no shard .*train-00000\.tar")
    (out / "prepare.json").write_text("{")
    refuse(r"prepare\.json is damaged")
    (out / "prepare.json").unlink()
    refuse("exists, not made by this command")


def test_bad_lines_go_to_the_quarantine(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", make_texts(30))
    with source.open("a") as file:
        file.write('{"text": ""}\n{"text"\n\n{"body": "x"}\n')
    with pytest.raises(DataError, match=r"2 of 34 lines .*d\.jsonl:32: not JSON"):
        prepare([source], tokenizer.path, tmp_path / "c", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"], "nothing may stay behind"
    result = prepare([source], tokenizer.path, tmp_path / "c", SMALL, max_bad_fraction=0.1)
    assert result.record["lines"] == {"lines": 34, "documents": 30, "empty": 1, "bad": 2}
    rows = [json.loads(line) for line in (tmp_path / "c" / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["path"], row["line"], row["excerpt"]) for row in rows] == [
        (str(source), 32, '{"text"'),
        (str(source), 34, '{"body": "x"}'),
    ]
    assert "not JSON" in rows[0]["reason"] and 'no key "text" (keys: body)' in rows[1]["reason"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", SMALL, "the corpus is empty"),
        ("\n \n", SMALL, "the corpus is empty"),
        ('{"text": "  "}\n', SMALL, "the corpus is empty"),
        (ONE, replace(SMALL, json_key="body"), r'd\.jsonl:1: no key "body" \(keys: text\)'),
        (ONE, replace(SMALL, validation_fraction=1.0), r"--validation-fraction must lie in \[0, 1\)"),
        (ONE, replace(SMALL, validation_fraction=0.999), "every document fell into the validation split"),
        (ONE, replace(SMALL, block_bytes=0), "--block-bytes"),
        (ONE, replace(SMALL, shard_bytes=0), "--shard-bytes"),
        (ONE, replace(SMALL, seed=-1), "--seed"),
    ],
)
def test_input_that_makes_no_corpus_is_explained(
    tmp_path: Path, tokenizer: Tokenizer, content: str, options: PrepareOptions, message: str
) -> None:
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        prepare([tmp_path / "d.jsonl"], tokenizer.path, tmp_path / "c", options)
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_missing_inputs_are_named(tmp_path: Path, tokenizer: Tokenizer, corpus_file: Path) -> None:
    with pytest.raises(DataError, match=r"no input file .*none\.jsonl"):
        prepare([tmp_path / "none.jsonl"], tokenizer.path, tmp_path / "c", SMALL)
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*none\.model"):
        prepare([corpus_file], tmp_path / "none.model", tmp_path / "c", SMALL)


def test_what_a_killed_run_left_is_cleared(tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer) -> None:
    leftover = tmp_path / ".c.partial" / "train"
    leftover.mkdir(parents=True)
    (leftover / "junk.tar").write_text("x")
    prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert not (tmp_path / "c" / "train" / "junk.tar").exists()


def test_two_at_once_do_not_mix(tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer) -> None:
    holder = "\n".join(
        [
            "import sys, pathlib",
            "from data_tools.publish import publish_directory",
            "with publish_directory(pathlib.Path(sys.argv[1])):",
            "    print('held', flush=True)",
            "    sys.stdin.read()",
            "    raise SystemExit",
        ]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "c")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=r"another process is writing .*\.c\.partial"):
            prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
    finally:
        process.communicate("")
    assert prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL).fresh


def test_an_input_that_changes_meanwhile_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", make_texts(20))
    original = prepare_module._scatter

    def append_afterwards(*arguments: object) -> object:
        result = original(*arguments)  # type: ignore[arg-type]
        with source.open("a") as file:
            file.write('{"text": "late"}\n')
        return result

    monkeypatch.setattr(prepare_module, "_scatter", append_afterwards)
    with pytest.raises(DataError, match=r"d\.jsonl changed while it was read"):
        prepare([source], tokenizer.path, tmp_path / "c", SMALL)


def test_a_large_vocabulary_is_stored_in_four_bytes(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.prepare.Tokenizer.load", lambda path: _Large(path))
    prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
    manifest = load_manifest(tmp_path / "c" / "train")
    assert manifest.token_dtype == np.dtype("<u4")
    texts = [tokenizer.decode(tokens[:-1]) for tokens, _ in iterate_documents(manifest)]
    assert len(texts) == manifest.documents and set(texts) <= set(make_texts(300))


class _Large(Tokenizer):
    """A tokenizer that claims more ids than two bytes hold."""

    def __init__(self, path: Path) -> None:
        super().__init__(Path(path).read_bytes(), Path(path))
        self.vocab_size = 70_000
