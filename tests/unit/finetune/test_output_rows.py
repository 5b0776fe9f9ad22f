"""Rows with a column added: nothing of the input is lost, and every line is JSON."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.errors import DataError
from finetune import embed, finetuned, generate, predict
from finetune.output_rows import output_line, require_free
from finetune.task_config import ClassificationTask, TextColumns
from finetune.tasks import open_task

HALF = "\ud83d"


def refused(constant):
    raise AssertionError(f"{constant} is not JSON")


def strictly(line):
    return json.loads(line, parse_constant=refused)


@pytest.fixture
def commands(monkeypatch):
    """The commands with models that say the same of every row, by name: (input, out) -> exit code."""
    task = open_task(ClassificationTask(kind="classification"), TextColumns())

    @contextmanager
    def opened(_checkpoint, _columns=()):
        yield SimpleNamespace(task=task)

    @contextmanager
    def writer(_checkpoint):
        yield SimpleNamespace(
            tokens_of=lambda text: [1],
            require_room=lambda *_: 1,
            continue_tokens=lambda tokens, _options: [" more"] * len(tokens),
        )

    monkeypatch.setattr(finetuned, "open_finetuned", opened)
    monkeypatch.setattr(
        predict, "_answers", lambda _opened, rows, _size: ((row, {"label": "x"}) for row in rows)
    )
    monkeypatch.setattr(embed, "embed", lambda _checkpoint, texts, *_: iter([np.ones((len(texts), 2))]))
    monkeypatch.setattr(generate, "open_writer", writer)

    def run(name, source, out):
        main = {"predict": predict.main, "embed": embed.main, "generate": generate.main}[name]
        return main(["--checkpoint", "none", READS[name], str(source), "--out", str(out)])

    return run


READS = {"predict": "--input", "embed": "--input", "generate": "--prompts"}
NEEDS = {"predict": "text", "embed": "text", "generate": "prompt"}
ADDED = {"predict": "prediction", "embed": "embedding", "generate": "text"}


@pytest.mark.parametrize("name", ADDED)
def test_a_column_of_the_output_s_name_is_refused(name, commands, tmp_path):
    source, out, need, added = tmp_path / "in.jsonl", tmp_path / "out.jsonl", NEEDS[name], ADDED[name]
    source.write_text(json.dumps({need: "t"}) + "\n" + json.dumps({need: "t", added: "mine"}) + "\n")
    with pytest.raises(DataError, match=rf"in.jsonl:2: has a column '{added}' already.*; rename or remove"):
        commands(name, source, out)
    assert not out.exists()


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_what_is_passed_on_is_json(name, ending, commands, tmp_path):
    rows = [{NEEDS[name]: "t", "score": float("nan"), "more": [1.5, float("-inf")], "note": "caf\u00e9"}]
    source, out = tmp_path / f"in.{ending}", tmp_path / "out.jsonl"
    if ending == "jsonl":
        source.write_text(json.dumps(rows[0] | {"half": HALF}) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), source)
    assert commands(name, source, out) == 0
    (line,) = out.read_bytes().splitlines()
    row = strictly(line)
    assert row.pop(ADDED[name]) is not None
    half = {"half": HALF} if ending == "jsonl" else {}
    assert row == {NEEDS[name]: "t", "score": None, "more": [1.5, None], "note": "caf\u00e9", **half}


def test_ordinary_rows_are_written_as_they_are():
    line = output_line({"text": "caf\u00e9", "n": 1, "x": 0.5}, "prediction", {"label": "a"})
    assert line.decode() == '{"text": "caf\u00e9", "n": 1, "x": 0.5, "prediction": {"label": "a"}}\n'
    assert strictly(output_line({}, "prediction", (1.0, float("nan")))) == {"prediction": [1.0, None]}
    require_free("f:1", {"text": "t"}, "prediction")
