from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.documents import ReadCounts
from data_tools.errors import DataError
from data_tools.reading import (
    Intake,
    ReadOptions,
    check_unchanged,
    chunk_digest,
    find_inputs,
    lines,
    plan_chunks,
    read_chunk,
)
from data_tools.text_sample import SampleOptions
from tests.unit.data_tools.reading_support import ONE_CHUNK, PACKERS, read_all, texts_of

TEXTS = st.lists(
    st.one_of(st.text(st.sampled_from("ab\n \r\té中\x85\u2028"), max_size=12), st.none()), max_size=12
)


@given(
    texts=TEXTS,
    chunk_bytes=st.integers(1, 64),
    packed=st.sampled_from(sorted(PACKERS)),
    newline=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_jsonl_in_chunks_of_any_size_yields_every_line_once(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    chunk_bytes: int,
    packed: str,
    newline: bool,
) -> None:
    path = tmp_path_factory.mktemp("chunks") / f"f.jsonl{packed}"
    rows = ["" if text is None else json.dumps({"text": text, "id": i}) for i, text in enumerate(texts)]
    content = ("\n".join(rows) + ("\n" if newline else "")).encode()
    path.write_bytes(PACKERS[packed](content))
    intake, documents = read_all([path], chunk_bytes)
    expected = [(text, str(i)) for i, text in enumerate(texts) if text is not None and text.strip()]
    assert [(document.text, document.id) for document in documents] == expected
    assert intake.counts.empty == sum(text is not None and not text.strip() for text in texts)
    assert intake.counts.bad == 0 and intake.counts.records == len(content.splitlines())
    for document in documents:
        assert json.loads(content[document.position :].splitlines()[0])["text"] == document.text
    assert read_all([path])[1] == documents


@given(
    content=st.text(st.sampled_from("ab\n\n \r\té中\ufeff"), max_size=40),
    chunk_bytes=st.integers(3, 20),  # no chunk is so small that it ends inside a byte order mark
    packed=st.sampled_from(["", ".gz", ".zst"]),
)
@settings(max_examples=300, deadline=None)
def test_text_units_in_chunks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, content: str, chunk_bytes: int, packed: str
) -> None:
    path = tmp_path_factory.mktemp("text") / f"f.txt{packed}"
    path.write_bytes(PACKERS[packed](content.encode()))
    plain = content.removeprefix("\ufeff")
    expected = {
        "file": [plain],
        "line": [line.removesuffix("\r") for line in plain.split("\n")],
        "block": _split_blocks(plain),
    }
    for unit, units in expected.items():
        _, documents = read_all([path], chunk_bytes, text_unit=unit)
        assert texts_of(documents) == [text for text in units if text.strip()], unit
        assert [d.position for d in documents] == sorted({d.position for d in documents})
        for document in documents:
            begin = document.position or 3 * content.startswith("\ufeff")
            assert content.encode()[begin:].decode().startswith(document.text)


def _split_blocks(content: str) -> list[str]:
    blocks: list[list[str]] = [[]]
    for line in content.split("\n"):
        if line.strip(" \t\r"):
            blocks[-1].append(line)
        else:
            blocks.append([])
    return ["\n".join(block) for block in blocks]


BAD = [
    (b"{", "not JSON"),
    (b"[1]", "not a JSON object but list"),
    (b'"text"', "not a JSON object but str"),
    (b'{"body": "x", "id": 1}', 'no key "text" (keys: body, id)'),
    (b'{"text": 3}', 'key "text" is not a string but int'),
    (b'{"text": null}', 'key "text" is not a string but NoneType'),
    (b'{"text": "\\ud800"}', "lone surrogate at character 0"),
    (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
    (b'{"\\udfff": 1}', "(keys: ?)"),
    (b"[" * 5_000, "not JSON"),
]


@pytest.mark.parametrize("chunk_bytes", [1, 40, ONE_CHUNK])
def test_bad_lines_are_returned_with_place_and_reason(tmp_path: Path, chunk_bytes: int) -> None:
    good = b'{"text": "fine"}'
    content = b"\n".join(part for line, _ in BAD for part in (good, b"", line)) + b"\n"
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(content)
    intake, documents = read_all(paths, chunk_bytes)
    assert texts_of(documents) == ["fine"] * 2 * len(BAD)
    assert [bad.record for bad in intake.bad_records] == [3 * (i + 1) for i in range(len(BAD))] * 2
    assert [bad.path for bad in intake.bad_records] == [str(path) for path in paths for _ in BAD]
    for bad, (line, reason) in zip(intake.bad_records, BAD * 2, strict=True):
        assert reason in bad.reason
        assert content[bad.position : bad.position + len(line)] == line
        assert bad.excerpt == line[:200].decode("utf-8", "replace")


def test_what_only_json_reads_is_read_as_json_does(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "a", "score": NaN, "id": "\\ud800x", "source": 7}\n{"text": "b", "id": null}')
    _, documents = read_all([path])
    assert [(d.text, d.id, d.source) for d in documents] == [("a", "?x", "7"), ("b", "", "")]


def test_a_byte_order_mark_is_skipped_at_the_start_only(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n{"text": "c"}\n')
    intake, documents = read_all([path])
    assert [(d.position, d.text) for d in documents] == [(3, "a"), (34, "c")]
    assert [bad.record for bad in intake.bad_records] == [2]


@pytest.mark.parametrize("packed", sorted(PACKERS))
@pytest.mark.parametrize("chunk_bytes", [1, 7, 30, ONE_CHUNK])
def test_what_no_memory_holds_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 50)
    monkeypatch.setattr(lines, "READ_BYTES", 16)
    exact = json.dumps({"text": "y" * 38})
    assert len(exact) == 50
    rows = [json.dumps({"text": "x" * n}) for n in (500, 39)] + [exact, '{"text": "after"}', "z" * 51]
    path = tmp_path / f"f.jsonl{packed}"
    path.write_bytes(PACKERS[packed]("\n".join(rows).encode()))
    intake, documents = read_all([path], chunk_bytes)
    assert texts_of(documents) == ["y" * 38, "after"]
    places = [(1, 0), (2, len(rows[0]) + 1), (5, sum(map(len, rows[:4])) + 4)]
    assert [(bad.record, bad.position) for bad in intake.bad_records] == places
    assert all("longer than" in bad.reason for bad in intake.bad_records)

    block = f"{'p' * 20}\n{'q' * 29}"
    assert len(block) == 50
    content = f"{'x' * 60}\nend\n\n{block}\n\n{block}r\n\n{'short ' * 20}\n\nlast"
    path = tmp_path / f"f.txt{packed}"
    path.write_bytes(PACKERS[packed](content.encode()))
    intake, documents = read_all([path], chunk_bytes, text_unit="block")
    assert texts_of(documents) == [block, "last"]
    assert [bad.record for bad in intake.bad_records] == [1, 3, 4]
    intake, documents = read_all([path], chunk_bytes, text_unit="file")
    assert not documents and len(intake.bad_records) == 1


def test_the_limit_of_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "x"}\n' * 98 + "{\n[]\n")
    intake, _ = read_all([path], 100)
    intake.check(0.02)
    with pytest.raises(
        DataError,
        match=r"2 of 100 records .* --max-bad-fraction 0\.019; the first is .*f\.jsonl:99: not JSON",
    ):
        intake.check(0.019)
    Intake().check(0)


@pytest.mark.parametrize("fraction", [-1.0, -1e-9, 1.001, float("nan"), float("inf")])
def test_a_limit_that_is_no_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=r"--max-bad-fraction must lie in \[0, 1\], not "):
        Intake().check(fraction)
    with pytest.raises(DataError, match=r"--max-bad-fraction must lie in \[0, 1\], not "):
        SampleOptions(read=ReadOptions(), max_bytes=1, seed=1, max_bad_fraction=fraction)


def test_an_intake_keeps_the_first_bad_record_only(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    paths[0].write_text('{"text": "x"}\n' * 30 + "{\n" * 20)
    paths[1].write_text("[]\n" * 40)
    intake, _ = read_all(paths, 64)
    assert intake.first_bad == intake.bad_records[0] and intake.first_bad.record == 31
    assert [bad.record for bad in intake.bad_records] == [*range(31, 51), *range(1, 41)]
    held = [value for name, value in vars(intake).items() if name != "bad_records"]
    assert not any(isinstance(value, list | dict | set | tuple) for value in held)


TOKENS = [
    (b"[1, 2, 4294967295]", [1, 2, 4294967295]),
    (b"[]", None),
    (b"[1, true]", "a list with bool, not of integers only"),
    (b"[1.0]", "a list with float"),
    (b'["1"]', "a list with str"),
    (b"[-1]", "outside [0, 2^32)"),
    (b"[4294967296]", "outside [0, 2^32)"),
    (b"[123456789012345678901234567890]", "a list with float"),
    (b'"12"', "not a list of integers but str"),
]


def test_lists_of_token_ids(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(
        b"\n".join(b'{"ids": %s, "id": "d"}' % value for value, _ in TOKENS) + b'\n\n{"text": "x"}'
    )
    intake, documents = read_all([path], token_key="ids")
    assert [document.tokens.tolist() for document in documents if document.tokens is not None] == [
        TOKENS[0][1]
    ]
    assert documents[0].text == "" and documents[0].id == "d" and documents[0].tokens.dtype == "uint32"
    reasons = [reason for _, reason in TOKENS if isinstance(reason, str)] + ['no key "ids"']
    assert all(a in b.reason for a, b in zip(reasons, intake.bad_records, strict=True))
    assert dataclasses.astuple(intake.counts) == (11, 1, 1, 8)


def test_identity_of_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "abc"}\n' * 100)
    options = ReadOptions()
    file = find_inputs([str(path)], options)[0]
    chunks = plan_chunks([file], options, 300)
    assert sum(chunk.cost for chunk in chunks) == file.size == 1600
    digests = [chunk_digest(chunk) for chunk in chunks]
    assert digests == [chunk_digest(chunk) for chunk in pickle.loads(pickle.dumps(chunks))]
    check_unchanged(file)
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    assert [a == b for a, b in zip(digests, map(chunk_digest, chunks), strict=True)] == [
        i != 2 for i in range(6)
    ]
    with pytest.raises(DataError, match=r"f\.jsonl changed while it was read"):
        check_unchanged(file)
    path.write_bytes(content[:1000])
    for read in (
        lambda: list(read_chunk(chunks[-1], options, ReadCounts())),
        lambda: chunk_digest(chunks[-1]),
    ):
        with pytest.raises(DataError, match=r"f\.jsonl became shorter"):
            read()
    path.unlink()
    for read in (lambda: list(read_chunk(chunks[0], options, ReadCounts())), lambda: check_unchanged(file)):
        with pytest.raises(DataError, match=r"cannot read .*f\.jsonl: No such file"):
            read()


def test_a_file_that_grows_is_read_as_it_was_found(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("one\ntw")
    options = ReadOptions(text_unit="line")
    chunks = plan_chunks(find_inputs([str(path)], options), options)
    with path.open("a") as file:
        file.write("o\nthree\n")
    items = [item for chunk in chunks for item in read_chunk(chunk, options, ReadCounts())]
    assert texts_of(items) == ["one", "tw"]


def test_options_are_checked() -> None:
    with pytest.raises(DataError, match="format 'xml' is not one of auto, jsonl"):
        ReadOptions(format="xml")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="text_unit 'page' is not one of file, line, block"):
        ReadOptions(text_unit="page")  # type: ignore[arg-type]
    assert ReadOptions(**dataclasses.asdict(ReadOptions(format="csv"))) == ReadOptions(format="csv")
