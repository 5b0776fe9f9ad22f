"""A real HTTP server on 127.0.0.1 that misbehaves as a test asks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves a directory.

    Attributes:
        faults: what happens to the next requests of paths that contain a word: (word, fault), in order; each
            is used once. Faults: an HTTP status, "drop" (half of the body), "stall", "short", "none".
        ranges: whether Range is understood.
        requests: how often each path was asked for.
        sent: bytes of bodies.
        stalled: set when a request stalls.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.ranges = root, True
        self.faults: list[tuple[str, int | str]] = []
        self.requests: Counter[str] = Counter()
        self.sent = 0
        self.lock = threading.Lock()
        self.release, self.stalled = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> int | str | None:
        with self.lock:
            self.requests[path] += 1
            for number, (word, fault) in enumerate(self.faults):
                if word in path:
                    del self.faults[number]
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        fault = self.server.fault(path)
        if isinstance(fault, int):
            return self.answer(fault, b"sorry")
        file = self.server.root / path.lstrip("/")
        if not file.is_file():
            return self.answer(404, b"")
        body, status = file.read_bytes(), 200
        wanted = self.headers.get("Range")
        if wanted and self.server.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            body, status = body[int(first) : int(last) + 1], 206
            if not body:
                return self.answer(416, b"")
        if fault == "stall":
            self.head(status, len(body))
            self.wfile.write(body[:10])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.release.wait(60)
            self.close_connection = True
        elif fault == "drop":
            self.head(status, len(body))
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "short":
            self.answer(status, body[: len(body) // 2])
        else:
            self.answer(status, body)

    def head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def answer(self, status: int, body: bytes) -> None:
        self.head(status, len(body))
        self.wfile.write(body)
        with self.server.lock:
            self.server.sent += len(body)


@contextmanager
def serve(root: Path) -> Iterator[Server]:
    """A running server; it is gone after the block."""
    server = Server(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
