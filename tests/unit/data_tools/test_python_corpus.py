from __future__ import annotations

import json
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from data_tools import python_corpus
from data_tools.errors import DataError
from data_tools.python_corpus import build_python_corpus


def make_library(root: Path) -> Path:
    """A standard library in miniature: packages a0..a9 with ten documented functions each."""
    root.mkdir()
    for number in range(10):
        package = root / f"a{number}"
        package.mkdir()
        functions = "".join(
            f'def f{i}():\n    """Function {i} of package {number}: a function does what it does."""\n'
            for i in range(10 - number % 3)
        )
        (package / "__init__.py").write_text(f'"""Package {number}."""\n{functions}')
    (root / "lonely.py").write_text(
        "#!/usr/bin/env python\n# A comment block that is long enough to be read as prose: it goes on\n"
        '# over a second line.\nx = 1  # not this\n# nor this\n\nasync def g():\n    "Short."\n'
    )
    shared = 'class C:\n    """A docstring that two packages share cannot be given to one of them."""\n'
    for number in (0, 1):
        (root / f"a{number}" / "shared.py").write_text(shared)
    (root / "a0" / "test").mkdir()
    (root / "a0" / "test" / "t.py").write_text('"""Never read."""')
    (root / "site-packages").mkdir()
    (root / "site-packages" / "s.py").write_text('"""Never read."""')
    (root / "pydoc_data").mkdir()
    (root / "pydoc_data" / "topics.py").write_text(
        "# generated\ntopics = {'with': 'The with statement.\\n'}\n"
    )
    return root


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_documents_and_classes_of_a_small_library(tmp_path: Path) -> None:
    record, fresh = build_python_corpus(tmp_path / "out", make_library(tmp_path / "lib"))
    documents = {row["id"]: row for row in rows(tmp_path / "out" / "corpus.jsonl")}
    train, validation = (
        rows(tmp_path / "out" / "classification" / f"{s}.jsonl") for s in ("train", "validation")
    )
    assert fresh and record["documents"] == len(documents)
    assert "Never read." not in json.dumps(list(documents.values()))
    assert documents["topic:with"] == {
        "text": "The with statement.",
        "id": "topic:with",
        "source": "pydoc_data",
    }
    assert documents["lonely"]["text"] == (
        "A comment block that is long enough to be read as prose: it goes on\nover a second line.\n\nShort."
    )
    labels = Counter(row["label"] for row in train + validation)
    # Ten packages: a0 a3 a6 a9 have ten docstrings, a1 a4 a7 nine, a2 a5 a8 eight; ties go by name.
    assert set(labels) == {"a0", "a3", "a6", "a9", "a1", "a4", "a7", "a2"}
    assert labels["a0"] == 10 and labels["a1"] == 9
    assert validation and len(train) > len(validation)
    text = "\n".join(row["text"] for row in documents.values())
    assert all(row["text"] not in text for row in validation) and all(row["text"] in text for row in train)
    assert not {row["text"] for row in train} & {row["text"] for row in validation}


def test_the_same_library_gives_the_same_bytes_and_a_rerun_is_complete(tmp_path: Path) -> None:
    library = make_library(tmp_path / "lib")
    made = []
    for name in ("one", "two"):
        build_python_corpus(tmp_path / name, library)
        made.append({p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()})
    assert made[0] == made[1] and len(made[0]) == 4
    before = (tmp_path / "one" / "corpus.jsonl").stat().st_mtime_ns
    record, fresh = build_python_corpus(tmp_path / "one", library)
    assert not fresh and record["documents"] > 10
    assert (tmp_path / "one" / "corpus.jsonl").stat().st_mtime_ns == before


def test_an_output_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = make_library(tmp_path / "lib")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="exists: remove it or choose another"):
        build_python_corpus(tmp_path / "mine", library)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    build_python_corpus(tmp_path / "out", library)
    monkeypatch.setattr(python_corpus.platform, "python_version", lambda: "3.99.0")
    with pytest.raises(DataError, match=r"was made with Python 3\.\d+\.\d+, this is 3\.99\.0"):
        build_python_corpus(tmp_path / "out", library)


def test_a_python_without_sources_is_explained(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    with pytest.raises(DataError, match="came without its library's source files"):
        build_python_corpus(tmp_path / "out", tmp_path / "lib")


def test_this_python_has_enough_text(tmp_path: Path) -> None:
    record, _ = build_python_corpus(tmp_path / "out")
    assert record["text_bytes"] > 1_500_000 and record["documents"] > 400
    train, validation = record["classification"]["train"], record["classification"]["validation"]
    assert len(train) == 8 and train.keys() == validation.keys()
    share = sum(validation.values()) / sum([*train.values(), *validation.values()])
    assert 0.15 < share < 0.25
    assert max(validation.values()) < 0.5 * sum(validation.values()), (
        "the majority class must not be most of it"
    )
    assert (Path(sysconfig.get_path("stdlib")) / "ast.py").exists()
