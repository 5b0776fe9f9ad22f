"""`headwater data prepare --executor ray` on a Ray that it starts on this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.preparation import Preparation, assert_same, train_tokenizer, write_documents
from tests.support.processes import descendants, wait_until_gone
from tests.support.runs import finish, run, start

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

RAY = ("--executor", "ray", "--workers", "2")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    pytest.importorskip("ray")
    directory = tmp_path_factory.mktemp("local")
    documents = write_documents(directory / "documents.jsonl", 6_000_000)
    tokenizer = train_tokenizer(documents, directory / "tokenizer.model")
    preparation = Preparation((documents,), tokenizer, directory / "corpus")
    run(preparation.command())
    return preparation


def test_killed_workers_are_replaced_and_nothing_stays_behind(local: Preparation, tmp_path: Path) -> None:
    there = local.into(tmp_path / "corpus")
    process = start(there.command(*RAY))
    killed, seen = 0, set[psutil.Process]()
    while process.poll() is None:
        seen |= set(descendants(process.pid))
        for worker in seen if killed < 2 else ():
            if is_running_a_task(worker):
                os.kill(worker.pid, signal.SIGKILL)
                killed += 1
                break
        time.sleep(0.02)
    code, output = finish(process)
    assert code == 0 and killed == 2, output
    assert_same(there.out, local.out)
    assert not there.work.exists()
    wait_until_gone(seen)


def is_running_a_task(process: psutil.Process) -> bool:
    """Ray names a worker by the function that it runs."""
    try:
        return process.name().startswith("ray::run_task") or "ray::run_task" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_an_error_in_a_task_is_one_line(local: Preparation, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(local.inputs[0].read_bytes()[:2_000_000] + b'\n{"text"\n' * 2000)
    there = Preparation((broken,), local.tokenizer, tmp_path / "corpus")
    code, output = finish(start(there.command(*RAY)))
    assert code == 2
    lines = output.splitlines()
    assert lines[-1].startswith("headwater: error: ") and "records hold no document" in lines[-1], output
    assert "Traceback" not in output
