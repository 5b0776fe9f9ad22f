"""`headwater data prepare` killed, doubled, out of space: the next run makes the same bytes, or says why."""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from data_tools.errors import DataError
from data_tools.prepare import PrepareOptions, RunOptions, make_plan, open_executor, run_plan
from data_tools.tokenizer import load_tokenizer
from tests.support.preparation import (
    Preparation,
    assert_same,
    train_tokenizer,
    write_documents,
)
from tests.support.processes import descendants, wait_until_gone
from tests.support.runs import finish, run, start

DEDUP = "dedup: {exact: true, near: {bands: 14, rows: 8, ngram_words: 5, seed: 1}}\n"
TWO = ("--workers", "2")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    """A corpus that one process made in peace: 12 reading tasks, 20 packing tasks and those between."""
    directory = tmp_path_factory.mktemp("undisturbed")
    documents = write_documents(directory / "documents.jsonl", 12_000_000)
    clean = directory / "dedup.yaml"
    clean.write_text(DEDUP)
    tokenizer = train_tokenizer(documents, directory / "tokenizer.model")
    preparation = Preparation((documents,), tokenizer, directory / "corpus", clean)
    run(preparation.command())
    return preparation


@pytest.fixture
def here(undisturbed: Preparation, tmp_path: Path) -> Preparation:
    """The same corpus, to be made in an empty directory."""
    return undisturbed.into(tmp_path / "out" / "corpus")


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def workers_of(pid: int) -> list[psutil.Process]:
    """Worker processes, without Python's own helper."""
    return [process for process in descendants(pid) if "spawn_main" in " ".join(_words(process))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def disturb(process: subprocess.Popen[str], kind: str) -> None:
    """Kill a run, or one of its workers."""
    if kind == "worker":
        if workers := workers_of(process.pid):
            workers[0].kill()
    else:
        process.send_signal({"parent": signal.SIGKILL, "term": signal.SIGTERM, "ctrl-c": signal.SIGINT}[kind])


def watch(process: subprocess.Popen[str], before: dict[str, tuple[int, int]], there: Preparation) -> None:
    """Until the run ends, see that the records of tasks finished before are not written again."""
    while process.poll() is None:
        now = there.finished_tasks()
        again = [name for name in before.keys() & now.keys() if now[name] != before[name]]
        assert not again, f"ran again: {again}"
        time.sleep(0.02)


def killed_once(there: Preparation, kind: str, seconds: float) -> None:
    """Start the run, disturb it after so long, and check what is left."""
    before = there.finished_tasks()
    process = start(there.command(*TWO))
    wait_for(lambda: there.work.exists() or there.out.exists() or process.poll() is not None, "a begun run")
    if kind != "parent":  # from here on signals are handled; before, they end Python as they do
        wait_for(lambda: workers_of(process.pid) or process.poll() is not None, "a worker")
    time.sleep(seconds)
    family = descendants(process.pid)
    disturb(process, kind)
    watch(process, before, there)
    code, output = finish(process)
    wait_until_gone(family, seconds=5.0)
    if there.out.exists():
        return  # it was faster
    expected = {"parent": -signal.SIGKILL, "worker": 2, "term": 143, "ctrl-c": 130}[kind]
    assert code == expected and "Traceback" not in output, (kind, code, output)
    if kind == "worker":
        assert "headwater: error: a worker process was killed, probably out of memory: run again" in output
    after = there.finished_tasks()
    assert {name: after.get(name) for name in before} == before


def completed(there: Preparation, undisturbed: Preparation) -> None:
    """Run to the end, and compare."""
    before = there.finished_tasks()
    process = start(there.command(*TWO))
    watch(process, before, there)
    code, output = finish(process)
    assert code == 0, output
    assert_same(there.out, undisturbed.out)
    assert os.listdir(there.out.parent) == ["corpus"], "something stayed beside the corpus"


@pytest.mark.parametrize("kind", ["parent", "worker"])
def test_a_killed_run_goes_on_where_it_was(here: Preparation, undisturbed: Preparation, kind: str) -> None:
    process = start(here.command(*TWO))
    wait_for(lambda: len(here.finished_tasks()) >= 4, "four finished tasks")
    family = descendants(process.pid)
    disturb(process, kind)
    code, _ = finish(process)
    wait_until_gone(family, seconds=5.0)
    assert code != 0 and len(here.finished_tasks()) >= 4
    completed(here, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_crash_drill(here: Preparation, undisturbed: Preparation, seed: int) -> None:
    generator = random.Random(seed)
    kills = 0
    while kills < 12:
        killed_once(here, ["parent", "worker", "term", "ctrl-c"][kills % 4], generator.uniform(0.0, 2.5))
        kills += 1
        if here.out.exists():
            assert_same(here.out, undisturbed.out)
            shutil.rmtree(here.out.parent)
    completed(here, undisturbed)


def test_the_second_of_two_runs_says_so_at_once(here: Preparation, undisturbed: Preparation) -> None:
    first = start(here.command())
    wait_for(lambda: here.finished_tasks(), "a finished task")
    code, output = finish(start(here.command()))
    assert (code, output) == (
        2,
        f"headwater: error: another run is writing {here.work}: wait for it, or end it\n",
    )
    assert first.poll() is None, "the first run was over before the second: make the corpus larger"
    code, output = finish(first)
    assert code == 0, output
    assert_same(here.out, undisturbed.out)


def shares(there: Preparation) -> list[subprocess.Popen[str]]:
    """Two processes that share the tasks."""
    return [start(there.command("--task-index", str(index), "--task-count", "2")) for index in range(2)]


def test_two_processes_share_the_tasks(here: Preparation, undisturbed: Preparation) -> None:
    for process in shares(here):
        code, output = finish(process)
        assert code == 0, output
    assert_same(here.out, undisturbed.out)
    assert os.listdir(here.out.parent) == ["corpus"]


def test_a_process_stops_when_the_other_fails(here: Preparation, undisturbed: Preparation) -> None:
    first, second = shares(here)
    own = re.compile(r"read-\d*[13579]")  # which only it runs; by then it handles signals
    wait_for(lambda: any(map(own.fullmatch, here.finished_tasks())), "a finished task of the second")
    second.send_signal(signal.SIGTERM)
    assert finish(second)[0] == 143
    code, output = finish(first)
    assert code == 2
    assert output.endswith("headwater: error: the process with --task-index 1 failed: it was stopped\n")
    for process in reversed(shares(here)):  # the notes of failure are history now
        code, output = finish(process)
        assert code == 0, output
    assert_same(here.out, undisturbed.out)
    assert os.listdir(here.out.parent) == ["corpus"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that gives a file system of so many MB, or makes the one that it gave larger."""
    place = tmp_path / "disk"

    def resize(megabytes: int) -> Path:
        options = f"size={megabytes}m" + (",remount" if place.exists() else "")
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"cannot mount a small file system here: {result.stderr.strip()}")
        return place

    yield resize
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    "megabytes", [pytest.param(3, marks=pytest.mark.slow), 13, pytest.param(21, marks=pytest.mark.slow)]
)
def test_a_full_disk_is_named_and_the_run_goes_on_with_more_space(
    undisturbed: Preparation, disk: Callable[[int], Path], megabytes: int
) -> None:
    there = undisturbed.into(disk(megabytes) / "corpus")
    code, output = finish(start(there.command(*TWO)))
    assert code == 2
    assert f"headwater: error: no space left while writing below {there.work}: free some and" in output
    assert "Traceback" not in output and not there.out.exists()
    assert there.finished_tasks() and not list(there.work.rglob(".*.partial")), "space that is not given back"
    disk(64)
    completed(there, undisturbed)


@pytest.fixture
def small(undisturbed: Preparation, tmp_path: Path) -> Path:
    """An input of 2 MB: two reading tasks."""
    path = tmp_path / "small.jsonl"
    with undisturbed.inputs[0].open("rb") as file:
        path.write_bytes(b"".join(file.readlines(2_000_000)))
    return path


def prepare_disturbed(
    source: Path, undisturbed: Preparation, out: Path, change: Callable[[], object], restart: bool = False
) -> bool:
    """Prepare a corpus in this process; `change` is called between the plan and the tasks."""
    tokenizer = load_tokenizer(undisturbed.tokenizer)
    plan = make_plan([str(source)], PrepareOptions(name="small", shard_bytes=600_000), tokenizer)
    change()
    with open_executor("local", 1) as executor:
        return run_plan(plan, tokenizer.path, out, executor, RunOptions(restart=restart)).fresh


def nothing() -> None:
    pass


@pytest.mark.parametrize("what", ["is gone", "is a directory", "is another"])
def test_an_input_that_cannot_be_read_is_named(
    undisturbed: Preparation, small: Path, tmp_path: Path, what: str
) -> None:
    aside, out = tmp_path / "aside", tmp_path / "corpus"

    def change() -> None:
        small.rename(aside)
        if what == "is a directory":
            small.mkdir()
        elif what == "is another":
            small.write_bytes(aside.read_bytes().replace(b"e", b"a"))

    with pytest.raises(DataError, match=rf"{small}.*(No such file|Is a directory|changed while it was read)"):
        prepare_disturbed(small, undisturbed, out, change)
    assert not out.exists()
    small.rmdir() if small.is_dir() else small.unlink(missing_ok=True)
    aside.rename(small)
    assert prepare_disturbed(small, undisturbed, out, nothing)
    prepare_disturbed(small, undisturbed, tmp_path / "expected", nothing)
    assert_same(out, tmp_path / "expected")


def test_an_input_that_grows_meanwhile_needs_a_restart(
    undisturbed: Preparation, small: Path, tmp_path: Path
) -> None:
    def append() -> None:
        with small.open("a") as file:
            file.write('{"text": "late"}\n')

    out = tmp_path / "corpus"
    with pytest.raises(DataError, match=r"small\.jsonl changed while it was read: run again when it is comp"):
        prepare_disturbed(small, undisturbed, out, append)
    refused = r"the unfinished work in .* was made from another small\.jsonl .*: --restart throws it away"
    with pytest.raises(DataError, match=refused):
        prepare_disturbed(small, undisturbed, out, nothing)
    assert prepare_disturbed(small, undisturbed, out, nothing, restart=True)
    prepare_disturbed(small, undisturbed, tmp_path / "expected", nothing)
    assert_same(out, tmp_path / "expected")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_corrupt_gzip_is_named(undisturbed: Preparation, small: Path, tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(small.read_bytes(), mtime=0)
    packed, out = tmp_path / "small.jsonl.gz", tmp_path / "corpus"
    middle = len(whole) // 2
    packed.write_bytes(
        whole[:middle] if damage == "cut" else whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    )
    with pytest.raises(DataError, match=r"small\.jsonl\.gz"):
        prepare_disturbed(packed, undisturbed, out, nothing)
    assert not out.exists()
    packed.write_bytes(whole)
    assert prepare_disturbed(packed, undisturbed, out, nothing, restart=True)
    prepare_disturbed(packed, undisturbed, tmp_path / "expected", nothing)
    assert_same(out, tmp_path / "expected")


def test_another_corpus_in_the_same_place_is_made_anew(
    undisturbed: Preparation, small: Path, tmp_path: Path
) -> None:
    """In one process: the plan of the first must not be remembered."""
    out = tmp_path / "corpus"
    prepare_disturbed(small, undisturbed, out, nothing)
    shutil.rmtree(out)
    other = tmp_path / "other.jsonl"
    other.write_bytes(small.read_bytes()[: small.stat().st_size // 2].rpartition(b"\n")[0] + b"\n")
    prepare_disturbed(other, undisturbed, out, nothing)
    prepare_disturbed(other, undisturbed, tmp_path / "expected", nothing)
    assert_same(out, tmp_path / "expected")
