"""The preflight of a job: asks every node what it has, within a time limit; listens where ranks will meet."""

from __future__ import annotations

import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from launch.node_facts import PREFIX
from launch.preflight import NodeFacts, bad_nodes, read_line
from launch.slurm_step import END_SECONDS, Job, Signals, Step
from pretrain.config.environment import port_of_job
from pretrain.config.run_files import RANK_LINE

TRIED_PORTS = 50


@contextmanager
def listen_for_ranks(job_id: str) -> Iterator[int]:
    """Listen while the block runs on the port where the ranks will meet; yields it.

    It follows from the job's number, so that jobs on one node differ; a taken one is passed over.

    Raises:
        OSError: If so many ports in a row are taken that something else is wrong.
    """
    server = _first_free(port_of_job(job_id))
    with server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)  # wakes accept()


def preflight(job: Job, address: str, signals: Signals) -> dict[str, str]:
    """The nodes that must not take part, each with what is wrong with it."""
    token = f".preflight-{secrets.token_hex(8)}"
    path = job.run_dir / token
    path.write_text("")
    words = ["-m", "launch.node_facts", "--run-dir", str(job.run_dir), "--token", token, "--reach", address]
    words += [word for place in job.wanted.scratch_paths for word in ("--scratch", place)]
    try:
        with Step(job.questions(job.hosts, 1, words), captured=True) as step:
            answers = _collect(step, len(job.hosts), job.timeout, signals)
            if len(answers) == len(job.hosts):
                step.wait(END_SECONDS)
    finally:
        path.unlink(missing_ok=True)
    return bad_nodes(job.hosts, answers, job.wanted, job.timeout)


def _collect(step: Step, wanted: int, timeout: float, signals: Signals) -> list[NodeFacts]:
    """Read the step's output until every node has answered, it ends or the time is over."""
    answers: list[NodeFacts] = []
    for text in step_lines(step, timeout, signals):
        answers += read_line(text, time.time())
        if len(answers) >= wanted:
            break
    return answers


def step_lines(step: Step, timeout: float, signals: Signals) -> Iterator[str]:
    """The lines of a step's output, until it ends, a signal comes or the time is over; shows other lines.

    Where nothing comes for a while, it gives an empty one, so that the reader can look at its clock.
    """
    pending, deadline = b"", time.monotonic() + timeout
    while time.monotonic() < deadline and not signals.received:
        if not select.select([step.fileno()], [], [], 0.2)[0]:
            yield ""
            continue
        if not (chunk := os.read(step.fileno(), 65536)):
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            if PREFIX not in text and RANK_LINE not in text:
                print(text, file=sys.stderr, flush=True)
            yield text


def _first_free(first: int) -> socket.socket:
    for port in range(first, first + TRIED_PORTS):
        try:
            return socket.create_server(("", port), backlog=4096)
        except OSError as error:
            text = (
                f"headwater: port {port} on this node: {os.strerror(error.errno or 0)}; trying the next one"
            )
            print(text, file=sys.stderr, flush=True)
    raise OSError(f"no free port from {first} to {first + TRIED_PORTS - 1} on this node")


def _accept(server: socket.socket) -> None:
    with suppress(OSError):  # closed
        while True:
            server.accept()[0].close()
