from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_tools.errors import DataError
from data_tools.prepare import (
    PrepareOptions,
    RunOptions,
    make_plan,
    open_executor,
    options,
    prepare,
    read_task,
    run_plan,
    tasks,
)
from data_tools.prepare.lock import hold_directory
from data_tools.prepare.work import Work
from data_tools.provenance import read_provenance
from data_tools.reading import Chunk, ReadOptions
from data_tools.sentences import split_sentences
from data_tools.shard_format import load_manifest
from data_tools.shard_reader import iterate_documents, open_corpus
from data_tools.tokenizer import Tokenizer, load_tokenizer
from data_tools.verify import verify_corpus
from tests.unit.data_tools.support import make_texts, write_jsonl

ONE = '{"text": "x"}\n'
SMALL = PrepareOptions(
    name="small", sentences=True, validation_fraction=0.1, block_bytes=2048, shard_bytes=20_000, seed=3
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the inputs into many tasks with several segments, as those of a large corpus."""
    cut(monkeypatch, task_bytes=7_000, segment_bytes=2_000, bucket_bytes=5_000)


def cut(monkeypatch: pytest.MonkeyPatch, task_bytes: int, segment_bytes: int, bucket_bytes: int) -> None:
    for name, value in (("TASK", task_bytes), ("SEGMENT", segment_bytes), ("BUCKET", bucket_bytes)):
        monkeypatch.setattr(options, f"_SMALLEST_{name}", value)
        monkeypatch.setattr(options, f"_LARGEST_{name}", value)


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


def stored_texts(corpus: Path, split: str) -> list[str]:
    """Documents of a split as stock webdataset and plain sentencepiece ids give them."""
    tokenizer = load_tokenizer(corpus / "tokenizer.model")
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
    assert result.record["records"] == {"records": 300, "documents": 300, "empty": 0, "bad": 0}


@pytest.mark.usefixtures("small_chunks")
def test_bytes_do_not_depend_on_workers(tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer) -> None:
    made = []
    for workers in (1, 2, 5):
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
    monkeypatch.setattr("data_tools.prepare.pack_task._BATCH_BYTES", 500)
    cut(monkeypatch, task_bytes=3_001, segment_bytes=1_000, bucket_bytes=2_500)
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
    refuse("exists: remove it or choose another")


def test_bad_lines_go_to_the_quarantine(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", make_texts(30))
    with source.open("a") as file:
        file.write('{"text": ""}\n{"text"\n\n{"body": "x"}\n')
    with pytest.raises(DataError, match=r"2 of 34 records .*d\.jsonl:32: not JSON"):
        prepare([source], tokenizer.path, tmp_path / "c", SMALL)
    assert not (tmp_path / "c").exists()
    result = prepare([source], tokenizer.path, tmp_path / "c", SMALL, run=RunOptions(max_bad_fraction=0.1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d.jsonl"], "nothing may stay behind"
    assert result.record["records"] == {"records": 34, "documents": 30, "empty": 1, "bad": 2}
    rows = [json.loads(line) for line in (tmp_path / "c" / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["path"], row["record"], row["excerpt"]) for row in rows] == [
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
        (ONE, replace(SMALL, read=ReadOptions(text_key="body")), r'd\.jsonl:1: no key "body" \(keys: text\)'),
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
    assert not (tmp_path / "c").exists()


def test_missing_inputs_are_named(tmp_path: Path, tokenizer: Tokenizer, corpus_file: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl"):
        prepare([tmp_path / "none.jsonl"], tokenizer.path, tmp_path / "c", SMALL)
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*none\.model"):
        prepare([corpus_file], tmp_path / "none.model", tmp_path / "c", SMALL)


def test_a_run_that_failed_goes_on_where_it_stopped(
    tmp_path: Path,
    corpus_file: Path,
    tokenizer: Tokenizer,
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare([corpus_file], tokenizer.path, tmp_path / "undisturbed" / "c", SMALL)
    original, ran = tasks.run_task, list[tuple[str, int]]()

    def fail_in(stage: str, number: int) -> None:
        def run_task(task: tasks.Task) -> int:
            if (task.stage, task.number) == (stage, number):
                raise DataError("interrupted")
            ran.append((task.stage, task.number))
            return original(task)

        monkeypatch.setattr("data_tools.prepare.executors.run_task", run_task)

    for stage, number in [("read", 2), ("pack", 0), ("pack", 3), ("finish", 0)]:
        fail_in(stage, number)
        with pytest.raises(DataError, match="interrupted"):
            prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
        (tmp_path / ".c.work" / ".read-000001.spill.host-1.partial").write_text("what a killed process left")
    fail_in("none", 0)
    assert prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL).fresh
    assert len(ran) == len(set(ran)) > 8, "a finished task ran again"
    assert files_of(tmp_path / "c") == files_of(tmp_path / "undisturbed" / "c")
    assert not (tmp_path / ".c.work").exists()


def test_unfinished_work_of_something_else_is_kept_until_restart(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("data_tools.prepare.executors.run_task", lambda task: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
    other = replace(SMALL, seed=4)
    with pytest.raises(
        DataError, match=r"unfinished work .* with seed 3, this is 4: --restart throws it away"
    ):
        prepare([corpus_file], tokenizer.path, tmp_path / "c", other)
    assert prepare([corpus_file], tokenizer.path, tmp_path / "c", other, run=RunOptions(restart=True)).fresh


def test_two_at_once_do_not_mix(tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer) -> None:
    work = Work.of(tmp_path / "c")
    with (
        hold_directory(work.path, shared=False),
        pytest.raises(DataError, match=r"another run is writing .*\.c\.work"),
    ):
        prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
    assert prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL).fresh


def test_an_input_that_changes_meanwhile_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", make_texts(20))
    original = read_task.chunk_digest

    def append_afterwards(chunk: Chunk) -> bytes:
        with source.open("a") as file:
            file.write('{"text": "late"}\n')
        return original(chunk)

    monkeypatch.setattr(read_task, "chunk_digest", append_afterwards)
    with pytest.raises(DataError, match=r"d\.jsonl changed while it was read"):
        prepare([source], tokenizer.path, tmp_path / "c", SMALL)


def test_a_damaged_spill_file_is_named(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("data_tools.prepare.pack_task.pack", lambda work, number: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
    spill = tmp_path / ".c.work" / "read-000000.spill"
    raw = bytearray(spill.read_bytes())
    raw[len(raw) // 2] ^= 1
    spill.write_bytes(raw)
    with pytest.raises(DataError, match=r"read-000000\.spill is damaged: remove .*read-000000\.json"):
        prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL)
    (tmp_path / ".c.work" / "read-000000.json").unlink()
    assert prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL).fresh


@pytest.mark.usefixtures("small_chunks")
def test_provenance_leads_back_to_the_input(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = make_texts(60)
    rows = [{"text": text, "id": f"id-{n}", "source": "AB"[n % 2]} for n, text in enumerate(texts)]
    source = tmp_path / "d.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([source], tokenizer.path, tmp_path / "c", SMALL)
    lines = source.read_bytes()
    for split, manifest in open_corpus(tmp_path / "c").items():
        origins = [
            origin
            for shard in manifest.shards
            if shard.provenance is not None
            for origin in read_provenance(tmp_path / "c" / split / shard.provenance.path)
        ]
        for (tokens, _), origin in zip(iterate_documents(manifest), origins, strict=True):
            row = json.loads(lines[origin.position :].split(b"\n", 1)[0])
            assert row["text"] == tokenizer.decode(tokens[:-1]) and len(tokens) == origin.tokens
            assert (row["id"], row["source"], "d.jsonl") == (origin.id, origin.source, origin.file)


def test_the_same_files_elsewhere_give_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("raw", "copy/of/raw"):
        for number, name in enumerate(("web/a", "web/b", "books")):
            path = tmp_path / place / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(path, make_texts(40)[number::3])
    monkeypatch.chdir(tmp_path)
    copies = [tmp_path / "copy/of/raw" / name for name in ("web/b.jsonl", "web/a.jsonl", "books.jsonl")]
    spellings: list[list[str | Path]] = [["raw"], ["raw/books.jsonl", "raw/web/*"], [*copies]]
    outs = [tmp_path / f"c{number}" for number in range(len(spellings))]
    for inputs, out in zip(spellings, outs, strict=True):
        prepare(inputs, tokenizer.path, out, SMALL)
    names = [path.relative_to(outs[0]) for path in outs[0].rglob("*") if path.is_file()]
    assert len(names) > 6
    for name in names:
        if name.name != "prepare.json":  # says where the inputs lay
            assert len({(out / name).read_bytes() for out in outs}) == 1, name


def test_documents_that_are_tokens_already(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary.json"
    vocabulary.write_text(json.dumps({"kind": "integers", "vocab_size": 30, "special": {"eod": 29}}))
    source = tmp_path / "proteins.jsonl"
    documents = [[number % 29, (7 * number) % 29, 3] for number in range(50)]
    source.write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in [*documents, [1, 2, 29]]))
    read = ReadOptions(token_key="ids")
    prepare([source], vocabulary, tmp_path / "c", PrepareOptions(name="c", read=read, validation_fraction=0))
    manifest = load_manifest(tmp_path / "c" / "train")
    found = sorted(tokens.tolist() for tokens, _ in iterate_documents(manifest))
    assert found == sorted([*ids, 29] for ids in [*documents, [1, 2]])
    for wrong, message in ([1, 30], "token 30 is outside the vocabulary"), ([29, 1], "end-of-document id 29"):
        source.write_text(json.dumps({"ids": wrong}) + "\n")
        with pytest.raises(DataError, match=rf"proteins\.jsonl, document at 0: .*{message}"):
            prepare(
                [source],
                vocabulary,
                tmp_path / "w",
                PrepareOptions(name="w", read=read),
                run=RunOptions(restart=True),
            )


@pytest.mark.usefixtures("small_chunks")
def test_duplicates_go_and_the_first_stays(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = make_texts(80)
    near = [text.replace("Document", "document", 1) for text in texts[:20] if len(text.split()) > 60]
    source = write_jsonl(tmp_path / "d.jsonl", [*texts, *texts[::3], *near])
    clean = {"dedup": {"exact": True, "near": {}}}
    result = prepare([source], tokenizer.path, tmp_path / "c", replace(SMALL, clean=clean))
    kept = stored_texts(tmp_path / "c", "train") + stored_texts(tmp_path / "c", "validation")
    assert Counter(kept) == Counter(texts)
    assert result.record["duplicates"]["exact"] == len(texts[::3])
    assert result.record["duplicates"]["near_only"] == len(near) > 3


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary.json"
    vocabulary.write_text(json.dumps({"kind": "integers", "vocab_size": 70_000, "special": {"eod": 0}}))
    source = tmp_path / "d.jsonl"
    source.write_text(json.dumps({"ids": [69_999, 1]}) + "\n")
    read = ReadOptions(token_key="ids")
    prepare([source], vocabulary, tmp_path / "c", PrepareOptions(name="c", read=read, validation_fraction=0))
    manifest = load_manifest(tmp_path / "c" / "train")
    assert manifest.token_dtype == np.dtype("<u4")
    assert [tokens.tolist() for tokens, _ in iterate_documents(manifest)] == [[69_999, 1, 0]]


def test_arrays_of_integers_need_no_key_and_no_text_beside_them(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary.json"
    vocabulary.write_text(json.dumps({"kind": "integers", "vocab_size": 50, "special": {"eod": 49}}))
    rows = np.arange(120, dtype="<u2").reshape(10, 12) % 49
    np.save(tmp_path / "rows.npy", rows)
    options = PrepareOptions(name="c", validation_fraction=0)
    prepare([tmp_path / "rows.npy"], vocabulary, tmp_path / "c", options)
    manifest = load_manifest(tmp_path / "c" / "train")
    found = sorted(tokens.tolist() for tokens, _ in iterate_documents(manifest))
    assert found == sorted([*row, 49] for row in rows.tolist())
    text = write_jsonl(tmp_path / "d.jsonl", make_texts(3))
    with pytest.raises(DataError, match="text"):
        prepare([tmp_path / "rows.npy", text], vocabulary, tmp_path / "w", options)
    with pytest.raises(DataError, match=r"vocabulary\.json is a vocabulary of integers"):
        prepare([text], vocabulary, tmp_path / "w", options)
    with pytest.raises(DataError, match="--clean works on text"):
        prepare([tmp_path / "rows.npy"], vocabulary, tmp_path / "w", replace(options, clean={"dedup": {}}))
    assert not (tmp_path / ".w.work").exists()


def test_a_file_without_any_document_ends_the_reading_early(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = tmp_path / "d.jsonl"
    source.write_text('{"txt": "x"}\n' * 50_000)
    with pytest.raises(DataError, match=r'not one document in 10,000 records; the first: no key "text"'):
        prepare([source], tokenizer.path, tmp_path / "c", SMALL)


def test_what_is_scrubbed_does_not_come_out_by_the_quarantine(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", make_texts(30))
    with source.open("a") as file:
        file.write('{"txt": "mail john.smith@gmail.com"}\n')
    running = RunOptions(max_bad_fraction=0.1)
    clean = {"pii": {"salt": "a long secret of the project"}}
    prepare([source], tokenizer.path, tmp_path / "c", replace(SMALL, clean=clean), run=running)
    published = b"".join(path.read_bytes() for path in (tmp_path / "c").glob("*.json*"))
    assert b"quarantine" not in published and b"not a" not in published
    assert b"john.smith" not in published and b"secret of" not in published
    assert json.loads((tmp_path / "c" / "quarantine.jsonl").read_text())["record"] == 31


def test_a_file_of_the_cleaning_that_changes_meanwhile_is_refused(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("zebra\n")
    clean = {"quality": {"c4": {"bad_words": str(words)}}}
    made = make_plan([str(corpus_file)], replace(SMALL, clean=clean), tokenizer)
    words.write_text("document\n")
    with (
        open_executor("local", 1) as executor,
        pytest.raises(DataError, match="changed since this work began"),
    ):
        run_plan(made, tokenizer.path, tmp_path / "c", executor, RunOptions())


def test_shards_cannot_be_too_many(tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer) -> None:
    options = replace(SMALL, shard_bytes=1)
    with pytest.raises(DataError, match=r"--shard-bytes 1 would make [\d,]+ shards: choose at least \d+"):
        prepare([corpus_file], tokenizer.path, tmp_path / "c", options)


def test_a_very_long_name_is_cut_between_characters(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = tmp_path / "d.jsonl"
    source.write_text(json.dumps({"text": "A document.", "id": "é" * 40_000}) + "\n")
    prepare([source], tokenizer.path, tmp_path / "c", PrepareOptions(name="c", validation_fraction=0))
    (origin,) = read_provenance(tmp_path / "c" / "train" / "train-00000.parquet")
    assert origin.id == "é" * (0xFFFF // 2)


def test_out_may_be_a_link_to_an_empty_directory(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "corpus").mkdir()
    (tmp_path / "c").symlink_to(tmp_path / "disk" / "corpus")
    assert prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL).fresh
    assert not prepare([corpus_file], tokenizer.path, tmp_path / "c", SMALL).fresh
