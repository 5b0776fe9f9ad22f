from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from data_tools.reading import lines
from tests.unit.data_tools.reading_support import ONE_CHUNK, PACKERS, read_all, texts_of

FIELDS = st.text(st.sampled_from('ab,"\n\r\t ;é中'), max_size=10)


@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=8),
    packed=st.sampled_from(sorted(PACKERS)),
    extension=st.sampled_from([".csv", ".tsv"]),
    chunk_bytes=st.integers(1, 100),
    mark=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_csv_as_the_csv_module_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    packed: str,
    extension: str,
    chunk_bytes: int,
    mark: bool,
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="," if extension == ".csv" else "\t", quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "text", "more"), *rows])
    content = ("\ufeff" if mark else "").encode() + file.getvalue().encode()
    path = tmp_path_factory.mktemp("csv") / f"f{extension}{packed}"
    path.write_bytes(PACKERS[packed](content))
    intake, documents = read_all([path], chunk_bytes)
    assert [(d.id, d.text) for d in documents] == [(id_, text) for id_, text, _ in rows if text.strip()]
    assert intake.counts.bad == 0
    for document in documents:
        row = next(csv.reader(io.StringIO(content[document.position :].decode(), newline=""), writer.dialect))
        assert extension == ".tsv" or row[1] == document.text


def test_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        b"id,text",
        b"1,good",
        b"2,too,many",
        b"3",
        b"",
        b"4,\xff\xfe",
        b'5,"quo"te"',
        b"\xff,fine",
        b"6," + b"x" * 200_000,  # beyond the csv module's own limit of a field
        b"7,   ",
        b'8,"open',
        b"9,end",
    ]
    path = tmp_path / "f.csv"
    path.write_bytes(b"\r\n".join(rows))
    intake, documents = read_all([path])
    assert [(d.id, d.text[:4]) for d in documents] == [("1", "good"), ("?", "fine"), ("6", "xxxx")]
    reasons = [
        (3, "3 fields, the header has 2"),
        (4, "1 fields, the header has 2"),
        (6, "not UTF-8 at character 0 of the text"),
        (7, "not a row: ',' expected after '\"'"),
        (11, "not a row: unexpected end of data"),
    ]
    assert [(bad.record, bad.reason) for bad in intake.bad_records] == reasons
    places = [sum(len(row) + 2 for row in rows[:at]) for at in (2, 3, 5, 6, 10)]
    assert [bad.position for bad in intake.bad_records] == places
    assert dataclasses.astuple(intake.counts) == (11, 3, 1, 5)

    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(lines, "READ_BYTES", 500)
    monkeypatch.setattr(csv, "field_size_limit", lambda *limit: 1000)
    intake, documents = read_all([path])
    assert [d.id for d in documents] == ["1", "?"]
    assert any(bad.record == 9 and "longer than" in bad.reason for bad in intake.bad_records)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,body\n1,x\n", 'no column "text" (columns: id, body): name it with --text-key'),
        ("text,text\n1,x\n", '2 columns are called "text": rename all but one'),
        ('"te"xt\n', "the first row must hold the names of the columns"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "f.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_all([path])
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "string", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=8)), max_size=30),
    group_rows=st.integers(1, 10),
    chunk_bytes=st.integers(1, 2000),
)
@settings(max_examples=15, deadline=None)
def test_parquet_by_row_groups_as_pyarrow_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    string: pa.DataType,
    texts: list[str | None],
    group_rows: int,
    chunk_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("parquet") / "f.parquet"
    ids = list(range(len(texts)))
    columns = {
        "other": ["x" * 100] * len(texts),
        "text": pa.array(texts, pa.string()).cast(string),
        "id": ids,
    }
    pq.write_table(pa.table(columns), path, row_group_size=group_rows)
    intake, documents = read_all([path], chunk_bytes)
    independent = enumerate(pq.read_table(path).column("text").cast(pa.string()).to_pylist())
    expected = [(row, str(row), text) for row, text in independent if text and not text.isspace()]
    assert [(d.position, d.id, d.text) for d in documents] == expected
    nulls = [row for row, text in enumerate(texts) if text is None]
    assert [(bad.record - 1, bad.position, bad.reason) for bad in intake.bad_records] == [
        (row, row, 'column "text" is null') for row in nulls
    ]
    assert intake.counts.records == len(texts)


def test_only_the_needed_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    table = pa.table({"wide": [b"y" * 200] * 2000, "text": [f"t{i}" for i in range(2000)]})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    begin = content.index(b"y" * 200)
    content[begin : begin + 300_000] = bytes(300_000)  # damage of a column that nobody wants
    path.write_bytes(content)
    assert len(read_all([path])[1]) == 2000
    with pytest.raises(DataError, match=r"f\.parquet is damaged or no parquet file"):
        read_all([path], text_key="wide")


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    buffers = [None, pa.array([0, 2, 4], pa.int32()).buffers()[1], pa.py_buffer(b"ab\xff\xfe")]
    column = pa.Array.from_buffers(pa.string(), 2, buffers)
    for stored in (column, pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), column)):
        pq.write_table(pa.table({"text": stored}), path)
        intake, documents = read_all([path])
        assert texts_of(documents) == ["ab"]
        assert [bad.reason for bad in intake.bad_records] == ['column "text" is not UTF-8 at byte 0']


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_names_that_are_not_utf8(tmp_path: Path, dictionary: bool) -> None:
    path = tmp_path / "f.parquet"
    buffers = [
        pa.py_buffer(b"\x03"),
        pa.array([0, 2, 5, 5], pa.int32()).buffers()[1],
        pa.py_buffer(b"ab\xff\xfec"),
    ]
    column = pa.Array.from_buffers(pa.string(), 3, buffers)
    if dictionary:
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int32()), column[:2])
    pq.write_table(pa.table({"text": ["x", "y", "z"], "id": column, "source": column}), path)
    _, documents = read_all([path])
    third = "ab" if dictionary else ""
    assert [(d.id, d.source) for d in documents] == [("ab", "ab"), ("??c", "??c"), (third, third)]


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.uint32()), pa.list_(pa.uint16(), 2)])
def test_parquet_tokens(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "f.parquet"
    rows: list[Any] = [[1, 65535], None, [7, None], [3, 4]]
    if kind == pa.list_(pa.int64()):
        rows += [[], [-1], [1 << 32], [(1 << 32) - 1]]
    pq.write_table(pa.table({"ids": pa.array(rows, kind), "id": ["d"] * len(rows)}), path, row_group_size=2)
    intake, documents = read_all([path], 1, token_key="ids")
    good = [[1, 65535], [3, 4]] + ([[(1 << 32) - 1]] if len(rows) > 4 else [])
    assert [d.tokens.tolist() for d in documents if d.tokens is not None] == good
    assert all(d.text == "" and d.id == "d" and d.tokens.dtype == np.uint32 for d in documents)
    reasons = ["is null", "has nulls in its list"] + ["has integers outside [0, 2^32)"] * 2 * (len(rows) > 4)
    assert [bad.reason for bad in intake.bad_records] == [f'column "ids" {reason}' for reason in reasons]


def test_parquet_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"text": [1, 2], "ids": [[1.5], []]}), path)
    for options, message in (
        ({}, 'column "text" is int64, not text'),
        ({"text_key": "body"}, 'not one column "body" (columns: text, ids)'),
        ({"token_key": "ids"}, 'column "ids" is list<element: double>, not a list of integers'),
    ):
        with pytest.raises(DataError) as caught:
            read_all([path], **options)
        assert message in str(caught.value)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"f\.parquet is damaged or no parquet file"):
        read_all([path])


@given(
    rows=st.integers(0, 20),
    columns=st.integers(0, 9),
    dtype=st.sampled_from(["u1", "<u2", ">u4", "i8", "u8"]),
    chunk_bytes=st.integers(1, 300),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_arrays(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    dtype: str,
    chunk_bytes: int,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("npy") / "f.npy"
    top = min(np.iinfo(dtype).max, 1 << 33)
    values = data.draw(st.lists(st.integers(0, top), min_size=rows * columns, max_size=rows * columns))
    array = np.array(values, dtype).reshape(rows, columns)
    np.save(path, array)
    intake, documents = read_all([path], chunk_bytes)
    good = [row for row in range(rows) if columns and array[row].max() < 1 << 32]
    assert [d.position for d in documents] == good
    assert all(np.array_equal(d.tokens, array[d.position]) for d in documents)
    assert intake.counts.bad == (rows - len(good) if columns else 0)
    np.save(path, array.reshape(-1))
    intake, documents = read_all([path], chunk_bytes)
    whole = bool(array.size and array.max() < 1 << 32)
    assert [d.tokens.tolist() for d in documents if d.tokens is not None] == [values] * whole
    assert intake.counts.bad == (array.size > 0 and not whole)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "is an array of float64 with shape (3,); wanted are integers"),
        (np.zeros((2, 3, 4), int), "is an array of int64 with shape (2, 3, 4)"),
        (np.zeros((2, 3), int, order="F"), "in Fortran order"),
        (np.array([True]), "is an array of bool"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = tmp_path / "f.npy"
    np.save(path, array)
    with pytest.raises(DataError) as caught:
        read_all([path])
    assert message in str(caught.value)


def test_a_truncated_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    np.save(path, np.arange(100))
    content = path.read_bytes()
    for length in (927, 50, 8):
        path.write_bytes(content[:length])
        with pytest.raises(
            DataError, match=r"f\.npy has (927 bytes, its header says 928|no readable \.npy header)"
        ):
            read_all([path], ONE_CHUNK)
