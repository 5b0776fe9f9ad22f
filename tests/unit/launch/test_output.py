"""Copying a rank's output: terminal as it comes, log by lines."""

from __future__ import annotations

import io
import os

from launch.output import LogFile, Tee, tail


class ClosedTerminal(io.BytesIO):
    def write(self, data: bytes) -> int:
        raise BrokenPipeError


def copied(tmp_path, chunks: list[bytes], terminal: io.BytesIO) -> str:
    reading, writing = os.pipe()
    log = LogFile(tmp_path / "log")
    with open(reading, "rb") as pipe:
        tee = Tee(pipe, terminal, log)
        tee.start()
        for chunk in chunks:
            os.write(writing, chunk)
        os.close(writing)
        tee.join(timeout=10)
        assert not tee.is_alive()
    log.close()
    return (tmp_path / "log").read_text()


def test_the_terminal_gets_every_byte_and_the_log_whole_lines(tmp_path):
    terminal = io.BytesIO()
    chunks = [b"on", b"e\ntwo\r\nlast", b" without end"]
    assert copied(tmp_path, chunks, terminal) == "one\ntwo\nlast without end\n"
    assert terminal.getvalue() == b"".join(chunks)


def test_a_live_line_leaves_its_last_state_without_terminal_codes(tmp_path):
    chunks = [b"\r\x1b[Kstep 1", b"\r\x1b[Kstep 2", b"\r\x1b[Kstep 3", b"\nsaved\n"]
    assert copied(tmp_path, chunks, io.BytesIO()) == "step 3\nsaved\n"


def test_a_lost_terminal_does_not_stop_the_log(tmp_path):
    assert copied(tmp_path, [b"one\n", b"two\n"], ClosedTerminal()) == "one\ntwo\n"


def test_the_tail_shows_the_last_attempt_only(tmp_path):
    path = tmp_path / "log"
    path.write_text(
        "=== attempt 1, x ===\nold\n=== attempt 2, x ===\n" + "".join(f"line {i}\n" for i in range(30))
    )
    assert tail(path) == [f"line {i}" for i in range(10, 30)]
    path.write_text("=== attempt 1, x ===\nold\n=== attempt 2, x ===\nnew\n")
    assert tail(path) == ["new"]
