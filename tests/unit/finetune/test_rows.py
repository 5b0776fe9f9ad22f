"""Rows of every format: what is accepted, and where the errors point."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.errors import DataError
from finetune.rows import Record, read_records
from finetune.task_config import (
    COLUMNS,
    ClassificationTask,
    MultiLabelTask,
    MultipleChoiceTask,
    QuestionAnsweringTask,
    RegressionTask,
    TaggingTask,
)
from finetune.tasks import open_task
from finetune.tasks.squad import GoldAnswer
from finetune.tasks.task import Encoder


def task(section, **columns):
    return open_task(section, COLUMNS[section.kind](**columns))


CLASSIFY = task(ClassificationTask(kind="classification"))


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_same_rows_from_every_format(tmp_path):
    rows = [{"text": 'one, "quoted"', "label": "x"}, {"text": "two\nlines", "label": "y"}]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.csv").write_text(
        'text,label\n"one, ""quoted""",x\n\n"two\nlines",y\n', encoding="utf-8-sig"
    )
    (tmp_path / "a.tsv").write_text('text\tlabel\n"one, ""quoted"""\tx\n"two\nlines"\ty\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for ending in ("jsonl", "csv", "tsv", "parquet"):
        assert [record.fields for record in read_records(tmp_path / f"a.{ending}")] == rows, ending
    places = [record.where.rpartition(":")[2] for record in read_records(tmp_path / "a.csv")]
    assert places == ["2", "5"]
    assert list(read_records(tmp_path / "a.parquet"))[1].where.endswith("a.parquet:row 2")


def test_bad_tables_are_named_by_file_and_line(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none,x\ntwo\n")
    with pytest.raises(DataError, match=r"a.csv:3: 1 fields, the header has 2"):
        list(read_records(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text("text,text\none,x\n")
    with pytest.raises(DataError, match="'text' twice"):
        list(read_records(tmp_path / "b.csv"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="no parquet file"):
        list(read_records(tmp_path / "c.parquet"))
    with pytest.raises(DataError, match=r"a.xlsx: cannot tell the format; name it \*.jsonl"):
        list(read_records(tmp_path / "a.xlsx"))


def test_a_row_of_several_lines_is_named_by_its_first_one_too(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\none,x\n\n"two,y\nthree,x\nfour,y\n')
    with pytest.raises(DataError, match=r"a.csv:6: not a row: .*; the row begins in line 4"):
        list(read_records(path))
    path.write_text('text,label\n"two,y\nthree"\nfour,y\n')
    with pytest.raises(DataError, match=r"a.csv:3: 1 fields, the header has 2; the row begins in line 2"):
        list(read_records(path))
    path.write_text('text,label\none,x\ntwo,"y"z\n')
    with pytest.raises(DataError, match=r"a.csv:3: not a row: [^;]*$"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "text;label\none;x\n"), ("a.csv", "text\tlabel\none\tx\n"), ("a.tsv", "text,label\none,x\n")],
)
def test_the_wrong_separator_is_told(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(
        DataError, match=r":2: no 'text'.*; is that the right separator\? .csv .* commas, .tsv"
    ):
        CLASSIFY.read(tmp_path / name)
    (tmp_path / name).write_text(text.replace("text", "words", 1))
    with pytest.raises(
        DataError, match=r":2: no 'text'[^?]*$"
    ):  # would not have it with the right one either
        CLASSIFY.read(tmp_path / name)
    if name == "a.csv":
        (tmp_path / name).write_text(text + "one, two;x\n")
        with pytest.raises(DataError, match=r":3: 2 fields, the header has 1; is that the right separator"):
            list(read_records(tmp_path / name))


@pytest.mark.parametrize("text", ['[\n  {"text": "t"}\n]\n', '{\n  "text": "t"\n}\n', "[" * 100_000])
def test_json_over_several_lines_is_told_what_a_row_is(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(
        DataError, match=r"a.json:1: not JSON: .*; the file must have one whole JSON object a"
    ):
        list(read_records(tmp_path / "a.json"))


def test_half_a_character_is_named_by_file_line_and_column(tmp_path):
    half = "\ud83d"
    path = write(tmp_path / "a.jsonl", {"text": "fine", "label": "x"}, {"text": f"abc {half}", "label": "x"})
    with pytest.raises(DataError, match=r"a.jsonl:2: 'text' is not valid Unicode: .* at character 4"):
        CLASSIFY.read(path)
    tags, choose = task(TaggingTask(kind="tagging")), task(MultipleChoiceTask(kind="multiple_choice"))
    path = write(tmp_path / "a.jsonl", {"words": ["a", half], "tags": ["O", "O"]})
    with pytest.raises(DataError, match=r"a.jsonl:1: 'words' is not valid Unicode"):
        tags.read(path)
    path = write(tmp_path / "a.jsonl", {"text": "t", "choices": ["a", half], "label": 0})
    with pytest.raises(DataError, match=r"a.jsonl:1: 'choices' is not valid Unicode"):
        choose.read(path)
    chat = Record("a.jsonl:1", {"messages": [{"role": "user", "content": half}]})
    with pytest.raises(DataError, match=r"a.jsonl:1: 'messages' is not valid Unicode"):
        chat.get("messages", "data.messages")
    path = write(tmp_path / "a.jsonl", {"text": "t", "label": "x", "unused": half})
    assert len(CLASSIFY.read(path)) == 1


def test_rows_keep_their_place_and_fields(tmp_path):
    path = write(
        tmp_path / "a.jsonl", {"text": "one", "label": "x"}, "", {"text": "two", "label": 3, "more": []}
    )
    rows = CLASSIFY.read(path)
    assert [(row.where, row.text, row.label) for row in rows] == [
        (f"{path}:1", "one", "x"),
        (f"{path}:3", "two", "3"),
    ]
    assert rows[1].fields == {"text": "two", "label": 3, "more": []}


def test_columns_are_named_pairs_are_read_and_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"review": "one", "reply": "two", "good": true}', encoding="utf-8-sig")
    pairs = task(ClassificationTask(kind="classification"), text="review", text_pair="reply", label="good")
    (row,) = pairs.read(path)
    assert (row.text, row.pair, row.label) == ("one", "two", "true")
    (unlabelled,) = pairs.read(path, labelled=False)
    assert unlabelled.label is None


GOOD = {"text": "fine", "label": "x"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "a row must be a JSON object"),
        ({"label": "x"}, "no 'text', which data.text asks for; the row has 'label'"),
        ({"text": "t"}, "no 'label', which data.label asks for; the row has 'text'"),
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
        CLASSIFY.read(path)
    assert error.value.exit_code == 2


def test_missing_empty_and_undecodable_files(tmp_path):
    with pytest.raises(DataError, match="cannot read .*absent.jsonl"):
        CLASSIFY.read(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no rows"):
        CLASSIFY.read(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}\n')
    with pytest.raises(DataError, match="latin.jsonl: not UTF-8"):
        CLASSIFY.read(tmp_path / "latin.jsonl")


def test_labels_are_sorted_numbers_by_value_and_one_is_not_a_task(tmp_path):
    def labels(*names):
        path = write(tmp_path / "a.jsonl", *({"text": "t", "label": name} for name in names))
        return CLASSIFY.infer_labels(path, CLASSIFY.read(path))

    assert labels("b", "a", "b") == ("a", "b")
    assert labels("10", 9, "-1") == ("-1", "9", "10")
    with pytest.raises(DataError, match="every row has the label 'a'"):
        labels("a", "a")


def test_an_unknown_label_is_named_by_file_and_line(tmp_path, codec):
    rows = CLASSIFY.read(
        write(tmp_path / "val.jsonl", {"text": "t", "label": "a"}, {"text": "t", "label": "c"})
    )
    with pytest.raises(DataError, match=r"val.jsonl:2: the label 'c' does not occur .* 'a', 'b'"):
        CLASSIFY.encode(rows, Encoder(codec, 16, ("a", "b")))


def test_several_labels_as_lists_or_separated(tmp_path, codec):
    several = task(MultiLabelTask(kind="multi_label"))
    path = write(
        tmp_path / "a.jsonl",
        {"text": "t", "labels": ["b", "a", "b"]},
        {"text": "t", "labels": " a | 7 "},
        {"text": "t", "labels": []},
    )
    rows = several.read(path)
    assert [row.label for row in rows] == [("b", "a"), ("a", "7"), ()]
    labels = several.infer_labels(path, rows)
    assert labels == ("7", "a", "b")
    targets = several.encode(rows, Encoder(codec, 16, labels)).targets["labels"]
    assert targets.tolist() == [[0, 1, 1], [1, 1, 0], [0, 0, 0]]
    with pytest.raises(DataError, match="a.jsonl:1: 'labels' must be a list of labels"):
        several.read(write(tmp_path / "a.jsonl", {"text": "t", "labels": 3}))


def test_numbers_of_a_regression(tmp_path):
    number = task(RegressionTask(kind="regression"), label="score")
    path = write(tmp_path / "a.jsonl", {"text": "t", "score": "2.5"}, {"text": "t", "score": -1})
    assert [row.label for row in number.read(path)] == [2.5, -1.0]
    for bad in ("x", None, True, "nan"):
        with pytest.raises(DataError, match="a.jsonl:1: 'score' must be a number"):
            number.read(write(tmp_path / "a.jsonl", {"text": "t", "score": bad}))


CONLL = """-DOCSTART- -X- O

EU NNP B-ORG
rejects VBZ O

Peter NNP B-PER
"""


def test_tagged_words_from_conll_and_lists(tmp_path):
    tags = task(TaggingTask(kind="tagging"))
    (tmp_path / "a.conll").write_text(CONLL)
    rows = tags.read(tmp_path / "a.conll")
    assert [(row.where[-2:], row.words, row.tags) for row in rows] == [
        (":3", ("EU", "rejects"), ("B-ORG", "O")),
        (":6", ("Peter",), ("B-PER",)),
    ]
    path = write(tmp_path / "a.jsonl", {"words": ["EU", "rejects"], "tags": "B-ORG O"})
    assert tags.read(path)[0].tags == ("B-ORG", "O")
    third = task(TaggingTask(kind="tagging"), tag_column=3)
    with pytest.raises(DataError, match=r"a.conll:1: 3 columns, so there is no number 3 \(data.tag_column"):
        third.read(tmp_path / "a.conll")
    with pytest.raises(DataError, match="a.jsonl:1: 2 words, 1 tags"):
        tags.read(write(tmp_path / "a.jsonl", {"words": ["a", "b"], "tags": ["O"]}))
    with pytest.raises(DataError, match="'words' must be a list of texts"):
        tags.read(write(tmp_path / "a.jsonl", {"words": ["a", ""], "tags": ["O", "O"]}))


def squad(*questions, context="The cat sat on the mat."):
    return {"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]}


def test_questions_from_squad_and_tables(tmp_path):
    ask = task(QuestionAnsweringTask(kind="question_answering"))
    answer = {"text": "the mat", "answer_start": 15}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad({"id": "q1", "question": "Where?", "answers": [answer]})))
    (row,) = ask.read(path)
    assert (row.id, row.answers) == ("q1", (GoldAnswer("the mat", 15),))
    table = {"question": "Where?", "context": "The cat sat on the mat.", "id": 7}
    lists = {"text": ["the mat"], "answer_start": [15]}
    (same,) = ask.read(write(tmp_path / "a.jsonl", table | {"answers": lists}))
    assert (same.id, same.answers) == ("7", row.answers)
    assert ask.read(write(tmp_path / "b.jsonl", table), labelled=False)[0].answers is None


def test_bad_questions(tmp_path):
    ask = task(QuestionAnsweringTask(kind="question_answering"))
    path = tmp_path / "squad.json"
    shifted = {"text": "the mat", "answer_start": 14}
    path.write_text(json.dumps(squad({"id": "q1", "question": "Where?", "answers": [shifted]})))
    with pytest.raises(DataError, match=r"qas\[0\]: the answer \"the mat\" does not stand at character 14"):
        ask.read(path)
    path.write_text(json.dumps(squad({"id": "q1", "question": "Why?", "answers": []})))
    with pytest.raises(DataError, match="has no answer; set task.no_answer: true"):
        ask.read(path)
    path.write_text('{"rows": []}')
    with pytest.raises(DataError, match="not a SQuAD json"):
        ask.read(path)


def test_a_record_names_what_it_lacks():
    with pytest.raises(DataError, match="f:1: no 'b', which data.x asks for; the row has 'a'"):
        Record("f:1", {"a": 1}).get("b", "data.x")


def test_choices_and_what_is_wrong_with_them(tmp_path, codec):
    choose = task(MultipleChoiceTask(kind="multiple_choice"))
    good = {"text": "t", "choices": ["a", "b c"], "label": "b c"}
    rows = choose.read(write(tmp_path / "good.jsonl", good, good | {"label": 0}))
    assert [row.label for row in rows] == [1, 0]
    examples = choose.encode(rows, Encoder(codec, 16))
    assert len(examples) == 2 and len(examples.sequences["tokens"]) == 4
    batch = examples.micro_batch([1, 0])
    assert batch["tokens"].shape[:2] == (2, 2) and batch["labels"].tolist() == [0, 1]
    pair = [codec.cls_id, *codec.encode("t"), codec.sep_id, *codec.encode("b c"), codec.sep_id]
    assert batch["tokens"][1, 1][batch["padding_mask"][1, 1]].tolist() == pair
    for bad, message in (
        ({"choices": "a"}, "'choices' must be a list of two texts or more, not \"a\""),
        ({"choices": ["a"]}, "'choices' must be a list of two texts or more"),
        ({"label": 2}, "'label' must be one of the choices or its number, 0 to 1, not 2"),
        ({"label": "c"}, "'label' must be one of the choices"),
        ({"label": True}, "'label' must be one of the choices"),
        ({"choices": ["a", "b", "b c"]}, "3 choices, the first row of the file has 2"),
    ):
        with pytest.raises(DataError, match=rf"bad.jsonl:2: {re.escape(message)}"):
            choose.read(write(tmp_path / "bad.jsonl", good, good | bad))
