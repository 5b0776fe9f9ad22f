"""Rows of labelled text: what is accepted, and where the errors point."""

from __future__ import annotations

import json

import pytest

from data_tools.errors import DataError
from finetune.labelled_text import Row, infer_labels, label_ids, read_rows


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_rows_keep_their_line_numbers(tmp_path):
    path = write(
        tmp_path / "a.jsonl", {"text": "one", "label": "x"}, "", {"text": "two", "label": 3, "more": []}
    )
    assert read_rows(path, "text", "label") == [Row(1, "one", "x"), Row(3, "two", "3")]


def test_columns_are_named_and_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"review": "one", "good": true}', encoding="utf-8-sig")
    assert read_rows(path, "review", "good") == [Row(1, "one", "true")]


GOOD = {"text": "fine", "label": "x"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "a row must be a JSON object"),
        ({"label": "x"}, "no 'text'; the row has 'label' .data.text"),
        ({"text": "t"}, "no 'label'; the row has 'text' .data.label"),
        ({"text": 5, "label": "x"}, "'text' must be text that is not blank, not 5"),
        ({"text": " \n", "label": "x"}, "'text' must be text that is not blank"),
        ({"text": "t", "label": 0.5}, "'label' must be text, a whole number"),
        ({"text": "t", "label": None}, "'label' must be text"),
        ({"text": "t", "label": ""}, "'label' must be text"),
        ({"text": "t", "label": ["a"]}, "'label' must be text"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, bad, message):
    path = write(tmp_path / "rows.jsonl", GOOD, "", bad, GOOD)
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: {message}") as error:
        read_rows(path, "text", "label")
    assert error.value.exit_code == 2


def test_missing_empty_and_undecodable_files(tmp_path):
    with pytest.raises(DataError, match="cannot read .*absent.jsonl"):
        read_rows(tmp_path / "absent.jsonl", "text", "label")
    with pytest.raises(DataError, match="no rows"):
        read_rows(write(tmp_path / "empty.jsonl", ""), "text", "label")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}\n')
    with pytest.raises(DataError, match="latin.jsonl: not UTF-8"):
        read_rows(tmp_path / "latin.jsonl", "text", "label")


def rows(*labels):
    return [Row(number, "text", label) for number, label in enumerate(labels, start=1)]


def test_labels_are_sorted_numbers_by_value(tmp_path):
    assert infer_labels(tmp_path, rows("b", "a", "b")) == ("a", "b")
    assert infer_labels(tmp_path, rows("10", "9", "-1")) == ("-1", "9", "10")
    assert label_ids(tmp_path, rows("b", "a"), ("a", "b")) == [1, 0]


def test_one_label_is_not_a_task(tmp_path):
    with pytest.raises(DataError, match="every row has the label 'a'"):
        infer_labels(tmp_path, rows("a", "a"))


def test_an_unknown_validation_label_is_named_by_file_and_line(tmp_path):
    with pytest.raises(DataError, match=r"val.jsonl:2: the label 'c' does not occur .* 'a', 'b'"):
        label_ids(tmp_path / "val.jsonl", rows("a", "c"), ("a", "b"))
