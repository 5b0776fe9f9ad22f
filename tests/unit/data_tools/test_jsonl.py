from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import jsonl
from data_tools.errors import DataError
from data_tools.jsonl import (
    BadLine,
    Chunk,
    Document,
    Intake,
    LineCounts,
    find_inputs,
    plan_chunks,
    read_chunk,
)


def read_all(paths: list[Path], chunk_bytes: int) -> tuple[Intake, list[str]]:
    intake, texts = Intake(), []
    for chunk in plan_chunks(paths, chunk_bytes):
        counts = LineCounts()
        items = list(read_chunk(chunk, "text", counts))
        intake.add(chunk, counts, [item for item in items if isinstance(item, BadLine)])
        texts += [item.text for item in items if isinstance(item, Document)]
    return intake, texts


@given(
    lines=st.lists(st.one_of(st.text(st.sampled_from("ab\n é中"), max_size=12), st.none()), max_size=12),
    chunk_bytes=st.integers(1, 64),
    final_newline=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_chunks_of_any_size_yield_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str | None], chunk_bytes: int, final_newline: bool
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "f.jsonl"
    rows = ["" if text is None else json.dumps({"text": text}, ensure_ascii=False) for text in lines]
    path.write_text("\n".join(rows) + ("\n" if final_newline else ""), encoding="utf-8")
    intake, texts = read_all([path], chunk_bytes)
    assert texts == [text for text in lines if text is not None and text.strip()]
    assert intake.counts.empty == sum(text is not None and not text.strip() for text in lines)
    assert intake.counts.bad == 0


BAD = [
    (b"{", "not JSON"),
    (b"[1]", "not a JSON object but list"),
    (b'{"body": "x", "id": 1}', 'no key "text" (keys: body, id)'),
    (b'{"text": 3}', 'key "text" is not a string but int'),
    (b'{"text": "\\ud800"}', "lone surrogate at character 0"),
    (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
    (b"[" * 5_000, "not JSON"),
]


@pytest.mark.parametrize("chunk_bytes", [1, 40, 1 << 20])
def test_bad_lines_are_returned_with_place_and_reason(tmp_path: Path, chunk_bytes: int) -> None:
    good = b'{"text": "fine"}'
    content = b"\n".join(part for line, _ in BAD for part in (good, b"", line)) + b"\n"
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    intake, texts = read_all([path, path], chunk_bytes)
    assert texts == ["fine"] * 2 * len(BAD)
    assert [bad.line for bad in intake.bad_lines] == [3 * (i + 1) for i in range(len(BAD))] * 2
    for bad, (line, reason) in zip(intake.bad_lines, BAD * 2, strict=True):
        assert bad.path == str(path) and reason in bad.reason
        assert content[bad.offset : bad.offset + len(line)] == line
        assert len(bad.excerpt) <= 200


def test_a_byte_order_mark_is_skipped_at_the_start_only(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
    intake, texts = read_all([path], 1 << 20)
    assert texts == ["a"] and [bad.line for bad in intake.bad_lines] == [2]


def test_a_line_that_no_memory_holds_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 50)
    path = tmp_path / "f.jsonl"
    exact = {"text": "y" * 38}  # 50 bytes of JSON, and the newline
    path.write_text(json.dumps({"text": "x" * 500}) + "\n" + json.dumps(exact) + "\n" + '{"text": "after"}')
    assert len(json.dumps(exact)) == 50
    for chunk_bytes in (7, 1 << 20):
        intake, texts = read_all([path], chunk_bytes)
        assert texts == ["y" * 38, "after"]
        assert [(bad.line, "longer than" in bad.reason) for bad in intake.bad_lines] == [(1, True)]


def test_the_limit_of_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "x"}\n' * 98 + "{\n[]\n")
    intake, _ = read_all([path], 100)
    intake.check(0.02)
    with pytest.raises(
        DataError, match=r"2 of 100 lines .* --max-bad-fraction 0\.019; the first is .*f\.jsonl:99: not JSON"
    ):
        intake.check(0.019)


def test_inputs_are_found_and_checked(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    a, b, c = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl"))
    assert find_inputs([tmp_path]) == [a, b, c]
    assert find_inputs([b, a]) == [b, a]
    with pytest.raises(DataError, match=r"no input file .*none\.jsonl"):
        find_inputs([tmp_path / "none.jsonl"])
    with pytest.raises(DataError, match="named twice"):
        find_inputs([a, tmp_path / "sub" / ".." / "a.jsonl"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.jsonl files under .*empty"):
        find_inputs([tmp_path / "empty"])
    (tmp_path / "d.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"d\.jsonl\.gz is compressed: decompress it first"):
        find_inputs([tmp_path / "d.jsonl.gz"])


def test_a_file_that_disappears_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone\.jsonl: No such file"):
        list(read_chunk(Chunk(0, tmp_path / "gone.jsonl", 0, 1), "text", LineCounts()))
