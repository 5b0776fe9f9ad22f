from __future__ import annotations

import gzip
import io
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.documents import ReadCounts
from data_tools.errors import DataError
from data_tools.reading import (
    Chunk,
    ReadOptions,
    check_unchanged,
    chunk_digest,
    find_inputs,
    plan_chunks,
    public_name,
    read_chunk,
    remote,
)
from tests.unit.data_tools.reading_support import read_all, texts_of

TEXTS = [f"document {i} " + "word " * (i % 50) for i in range(2000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


class Site:
    """A web server whose answers can be spoilt: what it was asked is in `requests`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.version: str | None = '"v1"'
        self.drops = 0  # answers to cut off in the middle
        self.errors: list[int] = []  # statuses to answer with first
        self.requests: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, format: str, *values: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = handler.path.partition("?")[0], handler.headers.get("Range")
        self.requests.append(f"{path} {wanted}")
        content = self.files.get(path)
        status = self.errors.pop(0) if self.errors else 200
        if content is None or status != 200:
            handler.send_response(404 if content is None else status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body, size = content, len(content)
        if wanted and self.ranges:
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            if first >= size:
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{size}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            body = content[first : last + 1]
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{size}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Content-Type", "text/html")
        if path.endswith(".gz"):  # as many servers do: the file must come as it is stored
            handler.send_header("Content-Encoding", "gzip")
        if self.version:
            handler.send_header("ETag", self.version)
        handler.end_headers()
        if self.drops and len(body) > 1:
            self.drops -= 1
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            handler.connection.close()
            handler.close_connection = True
        else:
            handler.wfile.write(body)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote, "PAUSES_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(remote, "REQUEST_BYTES", 20_000)
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("drops", [0, 3])
def test_files_from_the_web(site: Site, ranges: bool, drops: int) -> None:
    site.ranges, site.drops = ranges, drops
    site.files = {"/a/f.jsonl": LINES, "/a/f.jsonl.gz": gzip.compress(LINES), "/a/empty.jsonl": b""}
    assert texts_of(read_all([f"{site.url}/a/f.jsonl"], 30_000)[1]) == TEXTS
    site.drops = drops
    assert texts_of(read_all([f"{site.url}/a/f.jsonl.gz?signature=x.csv"], 300)[1]) == TEXTS
    assert read_all([f"{site.url}/a/empty.jsonl"])[1] == []
    assert site.drops == 0


def test_only_what_is_needed_is_asked_for(site: Site) -> None:
    site.files["/f.jsonl"] = LINES
    options = ReadOptions()
    files = find_inputs([f"{site.url}/f.jsonl"], options)
    assert (files[0].size, files[0].version, files[0].ranges) == (len(LINES), '"v1"', True)
    chunks = plan_chunks(files, options, 50_000)
    assert site.requests == ["/f.jsonl bytes=0-0"] and len(chunks) == -(-len(LINES) // 50_000) > 4
    read = list(read_chunk(chunks[1], options, ReadCounts()))
    asked = [request.rpartition("=")[2].split("-") for request in site.requests[1:]]
    assert [(int(first), int(last)) for first, last in asked] == [
        (50_000, 69_999),
        (70_000, 89_999),
        (90_000, 99_999),
        (100_000, min(100_000 + (256 << 10), len(LINES)) - 1),
    ]
    assert read
    digests = [chunk_digest(chunk) for chunk in chunks]
    assert len(set(digests)) == len(chunks) and len(site.requests) == 5
    site.version = '"v2"'
    again = plan_chunks(find_inputs([f"{site.url}/f.jsonl"], options), options, 50_000)
    assert not set(map(chunk_digest, again)) & set(digests)


def test_without_a_version_the_bytes_are_hashed(site: Site) -> None:
    site.files["/f.jsonl"], site.version = LINES, None
    options = ReadOptions()
    chunk = plan_chunks(find_inputs([f"{site.url}/f.jsonl"], options), options)[0]
    first = chunk_digest(chunk)
    site.files["/f.jsonl"] = LINES.replace(b"document 7 ", b"document 8 ")
    assert chunk_digest(chunk) != first


def test_formats_that_jump_about(site: Site) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS, "other": TEXTS}), sink, row_group_size=100)
    site.files["/f.parquet"] = sink.getvalue().to_pybytes()
    site.files["/f.npy"] = np_bytes(np.arange(60, dtype="u2").reshape(20, 3))
    site.drops = 2
    assert texts_of(read_all([f"{site.url}/f.parquet"], 10_000)[1]) == TEXTS
    arrays = [d.tokens.tolist() for d in read_all([f"{site.url}/f.npy"], 70)[1] if d.tokens is not None]
    assert arrays == np.arange(60).reshape(20, 3).tolist()
    site.ranges = False
    with pytest.raises(DataError, match=r"f\.parquet: its server has no range requests, which parquet needs"):
        read_all([f"{site.url}/f.parquet"])


def np_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_always_breaks_is_named(site: Site, ranges: bool) -> None:
    site.files["/f.jsonl"], site.ranges = LINES, ranges
    options = ReadOptions()
    chunk = plan_chunks(find_inputs([f"{site.url}/f.jsonl"], options), options)[0]
    site.drops = 1000
    with pytest.raises(DataError, match=r"cannot read http.*f\.jsonl after 4 attempts: \w+: "):
        list(read_chunk(chunk, options, ReadCounts()))
    assert 4 <= 1000 - site.drops <= 8  # aiohttp repeats a request by itself on a connection used before


def test_answers_that_may_pass_and_answers_that_do_not(site: Site) -> None:
    site.files["/f.jsonl"] = LINES
    site.errors = [503, 429]
    assert texts_of(read_all([f"{site.url}/f.jsonl"])[1]) == TEXTS
    site.requests.clear()
    for errors, message in (([403], r"ClientResponseError: 403"), ([500] * 4, r"after 4 attempts: .* 500")):
        site.errors = list(errors)
        with pytest.raises(DataError, match=message):
            find_inputs([f"{site.url}/f.jsonl"], ReadOptions())
    with pytest.raises(DataError, match=r"cannot read http.*/gone\.jsonl: FileNotFoundError"):
        find_inputs([f"{site.url}/gone.jsonl"], ReadOptions())
    assert len(site.requests) == 6
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DataError, match=r"cannot read http.* after 4 attempts: \w*Connect"):
        find_inputs([f"http://127.0.0.1:{port}/f.jsonl"], ReadOptions())


def test_a_file_that_changes_on_its_server(site: Site) -> None:
    site.files["/f.jsonl"] = LINES
    options = ReadOptions()
    file = find_inputs([f"{site.url}/f.jsonl"], options)[0]
    chunk = plan_chunks([file], options)[0]
    check_unchanged(file)
    site.version = '"v2"'
    for ranges in (True, False):
        site.ranges = ranges
        with pytest.raises(DataError, match=r"f\.jsonl changed while it was read"):
            check_unchanged(file)
    site.ranges = True
    with pytest.raises(DataError, match=r"f\.jsonl changed while it was read"):
        list(read_chunk(chunk, options, ReadCounts()))


def test_directories_and_globs_of_the_web(site: Site) -> None:
    names = (b"b.jsonl", b"a.jsonl", b"x.md", b".h.jsonl")
    site.files = {
        "/d/": b"".join(b'<a href="%s">x</a> ' % name for name in names),
        "/d/a.jsonl": LINES,
        "/d/b.jsonl": LINES,
        "/d/x.md": b"",
        "/d/.h.jsonl": LINES,
    }
    expected = [f"{site.url}/d/{name}.jsonl" for name in "ab"]
    for argument in (f"{site.url}/d/", f"{site.url}/d/*.jsonl"):
        files = find_inputs([argument], ReadOptions())
        assert [(file.url, file.argument, file.size) for file in files] == [
            (url, argument, len(LINES)) for url in expected
        ]
    with pytest.raises(DataError, match="named twice"):
        find_inputs([expected[0], f"{site.url}/d/"], ReadOptions())
    with pytest.raises(DataError, match=r"no input files under .*\*\.csv"):
        find_inputs([f"{site.url}/d/*.csv"], ReadOptions())


@pytest.mark.parametrize(
    ("url", "published"),
    [
        ("/data/a?b#c@d.jsonl", "/data/a?b#c@d.jsonl"),
        ("https://host/a/b.jsonl", "https://host/a/b.jsonl"),
        ("https://user:secret@host:8443/a@b.jsonl?sig=secret&x=1#part", "https://host:8443/a@b.jsonl"),
        ("https://user:se@cret@host/a.jsonl", "https://host/a.jsonl"),
        ("https://token@host", "https://host"),
        ("https://host#a@b/secret", "https://host"),
        ("s3://bucket/dir/a@b.jsonl", "s3://bucket/dir/a@b.jsonl"),
        ("s3://key:secret@bucket/a.jsonl", "s3://bucket/a.jsonl"),
        (
            "zip://inside.csv::https://user:secret@host/a.zip?sig=secret",
            "zip://inside.csv::https://host/a.zip",
        ),
    ],
)
def test_published_names_hold_no_credentials(url: str, published: str) -> None:
    assert public_name(url) == published


@pytest.mark.filterwarnings("error")  # a file system that is made by half says so when it is collected
def test_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cannot read nosuch://x/f\.jsonl: .*nosuch"):
        find_inputs(["nosuch://x/f.jsonl"], ReadOptions())
    with pytest.raises(DataError, match=r"cannot read ftp://x/y\.jsonl: ftp:// is not supported: download"):
        find_inputs(["ftp://x/y.jsonl"], ReadOptions())
    import builtins

    real = builtins.__import__

    def without_aiohttp(name: str, *values: object) -> object:
        if name == "aiohttp":
            raise ImportError("No module named 'aiohttp'")
        return real(name, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_aiohttp)
    with pytest.raises(DataError, match=r"pip install 'headwater\[http\]'"):
        find_inputs(["https://example.invalid/f.jsonl"], ReadOptions())


def read_texts(chunk: Chunk) -> list[str]:
    return texts_of(list(read_chunk(chunk, ReadOptions(), ReadCounts())))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes_read_urls_that_their_parent_found(site: Site, method: str) -> None:
    site.files["/f.jsonl"] = LINES
    chunks = plan_chunks(find_inputs([f"{site.url}/f.jsonl"], ReadOptions()), ReadOptions(), 60_000)
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        parts = list(pool.map(read_texts, chunks, timeout=60))
    assert sum(parts, []) == TEXTS


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket of a local S3 server."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="corpus")
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://corpus"
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def test_files_in_s3(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    client = boto3.client("s3")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink, row_group_size=100)
    for key, body in (
        ("d/a.jsonl", LINES),
        ("d/deep/b.jsonl.gz", gzip.compress(LINES)),
        ("d/c.parquet", sink.getvalue().to_pybytes()),
        ("d/.hidden/x.jsonl", b""),
        ("d/y.md", b""),
    ):
        client.put_object(Bucket="corpus", Key=key, Body=body)
    monkeypatch.setattr(remote, "PAUSES_SECONDS", (0.01,))
    monkeypatch.setattr(remote, "REQUEST_BYTES", 20_000)
    options = ReadOptions()
    files = find_inputs([f"{bucket}/d"], options)
    names = ["d/a.jsonl", "d/c.parquet", "d/deep/b.jsonl.gz"]
    assert [file.url for file in files] == [f"{bucket}/{name}" for name in names]
    assert files == [
        file
        for name in ("a.jsonl", "c.parquet", "deep/b.jsonl.gz")
        for file in _as_found(f"{bucket}/d/{name}", f"{bucket}/d")
    ]
    assert [file.url for file in find_inputs([f"{bucket}/d/**/*.jsonl*"], options)] == [
        f"{bucket}/{name}" for name in (names[0], names[2])
    ]
    assert texts_of(read_all([f"{bucket}/d/"], 40_000)[1]) == TEXTS * 3
    check_unchanged(files[0])
    client.put_object(Bucket="corpus", Key="d/a.jsonl", Body=LINES.replace(b"document 7 ", b"document 8 "))
    with pytest.raises(DataError, match=r"s3://corpus/d/a\.jsonl changed while it was read"):
        check_unchanged(files[0])
    client.put_object(Bucket="corpus", Key="d/a.jsonl", Body=LINES[:1000])
    with pytest.raises(
        DataError, match=r"s3://corpus/d/a\.jsonl after 2 attempts: EOFError: 1000 bytes came"
    ):
        list(read_chunk(Chunk(files[0], 0, 0, files[0].size), options, ReadCounts()))
    with pytest.raises(DataError, match=r"cannot read s3://corpus/none\.jsonl: FileNotFoundError"):
        find_inputs([f"{bucket}/none.jsonl"], options)
    with pytest.raises(DataError, match=r"no input files under s3://corpus/\*\.csv"):
        find_inputs([f"{bucket}/*.csv"], options)


def _as_found(url: str, argument: str) -> list[object]:
    """A file found by its own name, as if it had been found under another argument."""
    return [replace(file, argument=argument) for file in find_inputs([url], ReadOptions())]
