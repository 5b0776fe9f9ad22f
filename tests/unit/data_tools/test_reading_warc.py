from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from fastwarc.stream_io import GzipWriter
from fastwarc.warc import WarcRecord, WarcRecordType
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from data_tools.reading import lines
from tests.unit.data_tools.reading_support import PACKERS, read_all, texts_of


def record(kind: str, uri: str, body: bytes, content_type: str = "text/plain") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000001>\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def response(uri: str, body: bytes, head: str = "Content-Type: text/html; charset=utf-8") -> bytes:
    status = "" if head.startswith("HTTP/") else "HTTP/1.1 200 OK\r\n"
    return record(
        "response", uri, f"{status}{head}\r\n\r\n".encode() + body, "application/http; msgtype=response"
    )


def page(text: str) -> str:
    navigation = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/about'>About</a></li></ul></nav>"
    head = "<head><title>T</title><script>x()</script></head>"
    return f"<html>{head}<body>{navigation}<main><p>{text}</p></main></body></html>"


PROSE = "A paragraph of prose, long enough to be taken for the content of its page, with café and 中文."
INFO = record("warcinfo", "", b"software: test\r\n", "application/warc-fields")
REQUEST = record(
    "request", "http://a/", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "application/http; msgtype=request"
)


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=6),
    packed=st.sampled_from(sorted(PACKERS)),
)
@settings(max_examples=60, deadline=None)
def test_wet_records_are_documents(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], packed: str
) -> None:
    path = tmp_path_factory.mktemp("wet") / f"f.warc.wet{packed}"
    records = [INFO] + [record("conversion", f"http://a/{i}", text.encode()) for i, text in enumerate(texts)]
    path.write_bytes(PACKERS[packed](b"".join(records)))
    intake, documents = read_all([path], 10)
    expected = [
        (sum(map(len, records[: i + 1])), f"http://a/{i}", text)
        for i, text in enumerate(texts)
        if text.strip()
    ]
    assert [(d.position, d.id, d.text) for d in documents] == expected
    assert intake.counts.records == len(texts) and intake.counts.bad == 0


def test_pages_give_their_main_content(tmp_path: Path) -> None:
    packed = gzip.compress(page(PROSE).encode())
    encoded = "Content-Type: text/html\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked"
    latin = page("Un café " * 20)
    cyrillic = page("Ещё текст " * 20).replace("<title>", "<meta charset=windows-1251><title>")
    records = [
        INFO,
        REQUEST,
        response("http://utf8/", page(PROSE).encode()),
        response("http://latin/", latin.encode("latin-1"), "Content-Type: text/html; charset=latin-1"),
        response("http://meta/", cyrillic.encode("cp1251"), "Content-Type: text/html"),
        response("http://chunked/", b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed), encoded),
        response("http://image/", b"\xff\xd8\xff", "Content-Type: image/jpeg"),
        response("http://gone/", page(PROSE).encode(), "HTTP/1.1 404 Not Found\r\nContent-Type: text/html"),
        record("response", "dns:a", b"1.2.3.4", "text/dns"),
        record("metadata", "http://utf8/", b"languages: en", "application/warc-fields"),
        response("http://broken/", b"not gzip", "Content-Type: text/html\r\nContent-Encoding: gzip"),
        response("http://last/", page(PROSE).encode(), "Content-Type: application/xhtml+xml"),
    ]
    path = tmp_path / "f.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, records)))
    intake, documents = read_all([path])
    assert {d.id: d.text for d in documents} == {
        "http://utf8/": PROSE,
        "http://latin/": ("Un café " * 20).strip(),
        "http://meta/": ("Ещё текст " * 20).strip(),
        "http://chunked/": PROSE,
        "http://last/": PROSE,
    }
    bad = intake.bad_records[0]
    assert intake.counts.records == 6 and intake.counts.bad == 1
    assert (
        bad.record == 5
        and bad.position == sum(map(len, records[:10]))
        and "not a readable page" in bad.reason
    )


def test_files_that_fastwarc_writes(tmp_path: Path) -> None:
    path = tmp_path / "f.warc.gz"
    with path.open("wb") as file:
        stream = GzipWriter(file)
        for number in range(3):
            written = WarcRecord()
            written.init_headers(record_type=WarcRecordType.conversion)
            written.headers["WARC-Target-URI"] = f"http://a/{number}"
            written.set_bytes_content(f"text {number} é".encode())
            written.write(stream)
        stream.close()
    assert [(d.id, d.text) for d in read_all([path])[1]] == [
        (f"http://a/{i}", f"text {i} é") for i in range(3)
    ]


def test_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.warc"
    whole = [
        INFO,
        record("conversion", "http://a/", b"first"),
        REQUEST,
        response("http://b/", page(PROSE).encode()),
    ]
    for number in (1, 2, 3):  # inside the body of a record that is wanted, passed over, and a page
        begin = sum(map(len, whole[:number]))
        path.write_bytes(b"".join(whole[: number + 1])[: -4 - 2])
        with pytest.raises(
            DataError, match=rf"f\.warc is truncated: it ends inside the record at byte {begin}"
        ):
            read_all([path])
    path.write_bytes(whole[1] + b"garbage\r\n\r\n" + whole[1])
    with pytest.raises(
        DataError, match=r"f\.warc is damaged after the record at byte 0: Invalid WARC header"
    ):
        read_all([path])
    path = tmp_path / "f.warc.gz"
    packed = b"".join(map(gzip.compress, whole))
    path.write_bytes(packed[:-100])
    with pytest.raises(DataError, match=rf"f\.warc\.gz is truncated: it ends at byte {len(packed) - 100}"):
        read_all([path])

    path = tmp_path / "f.wet"
    path.write_bytes(
        record("conversion", "http://a/", b"\xffx") + record("conversion", "http://b/", b"y" * 99)
    )
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 50)
    intake, documents = read_all([path])
    assert texts_of(documents) == []
    assert [bad.reason for bad in intake.bad_records] == [
        "not UTF-8 at byte 0",
        "record is longer than 256 MiB",
    ]
