from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools import provenance
from data_tools.cli import main
from data_tools.errors import DataError
from data_tools.prepare import PrepareOptions, prepare
from data_tools.tokenizer import Tokenizer
from tests.unit.data_tools.support import make_texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("show")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_ROW_GROUP", 7)
        rows = [
            {"text": text, "id": "twice" if n in (30, 60) else f"doc{n}", "source": f"s{n % 3}"}
            for n, text in enumerate(make_texts(90))
        ]
        (directory / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        options = PrepareOptions(
            name="c", sentences=True, validation_fraction=0.1, block_bytes=1024, shard_bytes=8_000
        )
        prepare([directory / "d.jsonl"], tokenizer.path, directory / "c", options)
    return directory / "c"


def show(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["show", *argv]) == 0
    return capsys.readouterr().out


def test_every_document_is_shown_with_its_own_text_and_origin(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text holds the document's number, and so does its id: they must be of the same one."""
    found = set()
    for split in ("train", "validation"):
        out = show(capsys, str(corpus), "--split", split, "--count", "1000")
        for shown in out.split("--- document ")[1:]:
            _, origin, first, *_ = shown.splitlines()
            number = first.removeprefix("[0] Document ").removesuffix(".").split(".")[0]
            assert f"id doc{number}," in origin or (number in ("30", "60") and "id twice," in origin)
            assert f"source s{int(number) % 3}" in origin and "d.jsonl, position" in origin
            found.add(int(number))
    assert found == set(range(90))


def test_documents_are_found_by_id(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ""
    for split in ("train", "validation"):
        try:
            shown += show(capsys, str(corpus), "--split", split, "--id", "twice", "--count", "5")
        except DataError as error:
            assert "try the other --split" in str(error)
    assert shown.count("--- document") == shown.count("id twice") == 2
    with pytest.raises(DataError, match="no document with the id 'doc9999'"):
        main(["show", str(corpus), "--id", "doc9999"])


def test_a_range_and_its_errors(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = show(capsys, str(corpus), "--document", "5", "--count", "3")
    assert [line.split(",")[0] for line in out.splitlines() if line.startswith("---")] == [
        f"--- document {n}" for n in (5, 6, 7)
    ]
    assert "|" in show(capsys, str(corpus), "--pieces")
    for argv, message in (
        (["--document", "90"], r"must lie in \[0, \d+\)"),
        (["--document", "-1"], "must lie in"),
        (["--split", "test"], "--split must be one of"),
    ):
        with pytest.raises(DataError, match=message):
            main(["show", str(corpus), *argv])


def test_a_corpus_without_provenance_is_shown(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = corpus / "train" / "manifest.json"
    old = path.read_text()
    content = json.loads(old)
    for shard in content["shards"]:
        shard["provenance"] = None
    path.write_text(json.dumps(content))
    try:
        assert "from " not in show(capsys, str(corpus)).splitlines()[1]
        with pytest.raises(DataError, match="no document with the id"):
            main(["show", str(corpus), "--id", "doc1"])
    finally:
        path.write_text(old)


def test_damaged_provenance_is_named(corpus: Path) -> None:
    path = corpus / "train" / "train-00000.parquet"
    old = path.read_bytes()
    path.write_bytes(old[:-20])
    try:
        with pytest.raises(DataError, match="cannot read the provenance .*train-00000.parquet"):
            main(["show", str(corpus)])
    finally:
        path.write_bytes(old)
