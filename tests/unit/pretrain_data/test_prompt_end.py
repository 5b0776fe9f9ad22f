"""A process whose storage has stalled ends at once: when it is through, and when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.unit.pretrain_data.servers import serve
from tests.unit.pretrain_data.support import run_config

STALL_SECONDS = 60.0
"""Time-out of a read, and how long the storage is silent."""
PROMPT_SECONDS = 15.0
"""It takes one; the rest is for a machine on which Python itself takes long to end."""

CHILD = """
import sys
from pretrain.config import RunConfig
from pretrain.data import open_stream

stream = open_stream(RunConfig.model_validate_json(sys.argv[1]))
if sys.argv[2] == "ends":
    stream._steps = stream._begin()  # the thread reads, nobody waits
    sys.stdin.readline()
else:
    next(stream)
"""


def run_of(directory, path, mode, prefetch_steps, **entry):
    run = run_config(
        "gpt",
        directory,
        {"it": path},
        data__access=mode,
        data__prefetch_steps=prefetch_steps,
        data__remote={"attempts": 4, "timeout_seconds": STALL_SECONDS, "threads": 2},
    )
    corpora = [corpus.model_copy(update=entry) for corpus in run.data.corpora]
    return run.model_copy(update={"data": run.data.model_copy(update={"corpora": corpora})})


def assert_ends_promptly(run, how, stalled):
    """Start a process, wait until its storage has stalled, let it end or interrupt it."""
    command = [sys.executable, "-c", CHILD, run.model_dump_json(), how]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert stalled(), process.communicate(timeout=1)
            time.sleep(0.3)
            begin = time.monotonic()
            if how == "waits":
                process.send_signal(signal.SIGINT)
            _, said = process.communicate("\n" if how == "ends" else None, timeout=STALL_SECONDS / 2)
        finally:
            process.kill()
    assert time.monotonic() - begin < PROMPT_SECONDS
    if how == "ends":
        assert (process.returncode, said) == (0, "")
    else:
        assert process.returncode and said.rstrip().endswith("KeyboardInterrupt"), said


@pytest.mark.parametrize(("how", "prefetch_steps"), [("ends", 2), ("waits", 2), ("waits", 0)])
@pytest.mark.parametrize("mode", ["range", "cache"])
def test_a_stalled_request_does_not_hold_up_the_process(mode, how, prefetch_steps, corpora, tmp_path):
    with serve(corpora["first"]) as server:
        looked_at = [(".tar", "none")] * (mode == "range")  # when the stream is opened
        server.faults = looked_at + [(".tar", "stall")] * 1000
        run = run_of(tmp_path, server.url, mode, prefetch_steps)
        assert_ends_promptly(run, how, lambda: server.stalled.wait(STALL_SECONDS))


@pytest.mark.parametrize("how", ["ends", "waits"])
def test_a_stalled_command_ends_with_the_process(how, corpora, tmp_path):
    mark = tmp_path / "stalled"
    shards = f"pipe:echo $$ >> {mark}; exec sleep {STALL_SECONDS:g} # {{shard}}"

    def stalled():
        until = time.monotonic() + STALL_SECONDS
        while time.monotonic() < until and not (mark.exists() and mark.read_text().endswith("\n")):
            time.sleep(0.01)
        return mark.exists()

    assert_ends_promptly(run_of(tmp_path, corpora["first"], "cache", 2, shards=shards), how, stalled)
    until = time.monotonic() + PROMPT_SECONDS
    for command in map(int, mark.read_text().split()):
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < until:
                os.kill(command, 0)
                time.sleep(0.01)
