from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_tools.cli import main
from data_tools.errors import DataError
from data_tools.prepare import PrepareOptions, RunOptions, prepare
from data_tools.tokenizer import Tokenizer
from tests.unit.data_tools.support import make_texts, write_jsonl


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("report")
    texts = [f"{text} <script>alert({n})</script>" for n, text in enumerate(make_texts(60))]
    source = write_jsonl(directory / "d.jsonl", [*texts, *texts[:7], "too short"])
    with source.open("a") as file:
        file.write('{"body": "<b>not text</b>"}\n')
    clean = {"quality": {"gopher": {"min_words": 4, "max_words": None}}, "dedup": {"exact": True}}
    options = PrepareOptions(name="c", validation_fraction=0.1, clean=clean)
    prepare([source], tokenizer.path, directory / "corpus", options, run=RunOptions(max_bad_fraction=0.1))
    return directory / "corpus"


def test_the_page_holds_the_numbers_and_nothing_from_outside(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(corpus)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == corpus.parent / "corpus-report.html"
    page = path.read_text()
    assert '<td>records read</td><td class="number">69 (100.0%)</td>' in page
    assert "gopher.min_words" in page and "after exact duplicates" in page
    assert "1 bad records" in page and "no key &quot;text&quot;" in page
    assert not re.search(r"""(src|href)=|https?://|@import|<script""", page)
    HTMLParser().feed(page)


def test_a_directory_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a prepared corpus: it has no prepare\.json"):
        main(["report", str(tmp_path)])


def test_an_out_that_cannot_be_written_is_told_before_the_work_and_a_page_may_be_written_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.html").write_text("before")
    assert main(["report", str(corpus), "--out", str(tmp_path / "page.html")]) == 0
    assert "<!doctype html>" in (tmp_path / "page.html").read_text()
    monkeypatch.setattr("data_tools.report.open_corpus", lambda path: pytest.fail("worked"))
    with pytest.raises(DataError, match="is a directory; --out names the file to write"):
        main(["report", str(corpus), "--out", str(tmp_path)])
    with pytest.raises(DataError, match=r"page\.html is no directory; choose another --out"):
        main(["report", str(corpus), "--out", str(tmp_path / "page.html" / "more")])
