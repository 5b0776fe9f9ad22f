"""Labels: how they are read, in which order they are numbered, and their scores."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest

from data_tools.errors import DataError
from finetune.config import load_finetune_config
from finetune.task_config import COLUMNS, ClassificationTask, MultiLabelTask, RegressionTask, TaggingTask
from finetune.tasks import open_task
from finetune.tasks.text_rows import TextRow, sorted_labels
from pretrain.config import ConfigError


def task(section, **columns):
    return open_task(section, COLUMNS[section.kind](**columns))


@pytest.mark.parametrize(
    ("truth", "found", "f1", "exact_match"),
    [
        ("110000", "101000", 2 * 1 / (2 * 1 + 1 + 1), 4 / 6),  # 1 right, 1 too many, 1 missing
        ("111000", "111111", 2 * 3 / (2 * 3 + 3), 3 / 6),
        ("110", "000", 0.0, 1 / 3),
        ("000", "000", 0.0, 1.0),
        ("111", "111", 1.0, 1.0),
    ],
)
def test_the_f1_of_a_single_label_does_not_count_rows_without_it(truth, found, f1, exact_match):
    several = task(MultiLabelTask(kind="multi_label"))
    rows = [TextRow("f", "t", label=("a",) * int(there)) for there in truth]
    answers = [{"labels": ["a"] * int(there)} for there in found]
    scores = several.score(answers, rows, ("a",), 0.0)
    assert scores == pytest.approx({"f1_micro": f1, "f1_macro": f1, "exact_match": exact_match})


def test_the_f1_of_several_labels_by_hand():
    several = task(MultiLabelTask(kind="multi_label"))
    truth, found = ("a", "ab", "c", ""), ("ab", "b", "", "c")
    rows = [TextRow("f", "t", label=tuple(names)) for names in truth]
    scores = several.score([{"labels": list(names)} for names in found], rows, ("a", "b", "c"), 0.0)
    # right, too many, missing: a 1 0 1, b 1 1 0, c 0 1 1
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert scores["f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 2))


def test_labels_that_are_the_same_number_have_one_order(tmp_path):
    for names in permutations(["1", "01", "001", "-1", "0"]):  # a set may come in any order
        assert sorted_labels(names) == ("-1", "0", "001", "01", "1")
    assert sorted_labels({"10", "9", "-1"}) == ("-1", "9", "10")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_labels_have_no_spaces_around_them(tmp_path, ending):
    classify, path = task(ClassificationTask(kind="classification")), tmp_path / f"a.{ending}"
    between = "\t" if ending == "tsv" else ","
    labels = ["x", " x", "x ", "two words"]
    if ending == "jsonl":
        lines = [json.dumps({"text": "t", "label": label}) for label in labels]
    else:
        lines = [f"text{between}label", *(f"t{between}{label}" for label in labels)]
    path.write_text("\n".join(lines) + "\n")
    rows = classify.read(path)
    assert [row.label for row in rows] == ["x", "x", "x", "two words"]
    assert classify.infer_labels(path, rows) == ("two words", "x")
    path.write_text(lines[0] + "\n" + lines[-1].replace("two words", "  ") + "\n")
    with pytest.raises(DataError, match=rf"a.{ending}:2: 'label' must be text, a whole number"):
        classify.read(path)


def test_lists_of_labels_and_tags_have_no_spaces_around_them(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "t", "labels": ["a", " a", "b "], "words": ["EU"], "tags": [" B-X"]}))
    assert task(MultiLabelTask(kind="multi_label")).read(path)[0].label == ("a", "b")
    assert task(TaggingTask(kind="tagging")).read(path)[0].tags == ("B-X",)


@pytest.mark.parametrize("bad", ["1_0", "1_0.5", "", "1e999", [1], 10**400])
def test_what_is_no_number_for_a_regression(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"text": "t", "label": " 2.5e1 "}) + "\n" + json.dumps({"text": "t", "label": bad})
    )
    number = task(RegressionTask(kind="regression"))
    with pytest.raises(DataError, match="a.jsonl:2: 'label' must be a number, not"):
        number.read(path)
    path.write_text(path.read_text().splitlines()[0])
    assert number.read(path)[0].label == 25.0


def test_an_empty_separator_is_refused_by_name():
    config = Path(__file__).parents[3] / "configs/finetune/classification.yaml"
    several = ["task={kind: multi_label}", "data={train: a.csv, validation: b.csv, separator: ';'}"]
    assert load_finetune_config(config, several).data.separator == ";"
    with pytest.raises(ConfigError, match=r"data.separator: .*at least 1 character \(got ''\)"):
        load_finetune_config(config, [*several, "data.separator=''"])
