"""When a run stops, and when it refuses to start."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain import saving
from pretrain.checkpoint import CheckpointError
from pretrain.stop import RunDirectoryGoneError, StopFile, StopSignals
from tests.support.saving import job_that_saves

SCRIPT = """
import os, signal, sys, time
from pretrain.stop import StopFile, StopSignals
signals = StopSignals()
assert signals.reason() is None and signals.reason(3600) is None
if sys.argv[1] == "deferred":
    signals.defer()
for name, pause in [word.split(":") for word in sys.argv[2:]]:
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(float(pause))
time.sleep(0.1)
assert signals.reason() == sys.argv[2].split(":")[0], signals.reason()
print("alive")
"""


def send(*words: str) -> int:
    return subprocess.run([sys.executable, "-c", SCRIPT, *words], check=False, capture_output=True).returncode


def test_one_request_in_many_signals_never_ends_a_rank() -> None:
    assert send("deferred", "SIGUSR1:0", "SIGTERM:1.2", "SIGUSR2:0", "SIGINT:0", "SIGINT:0") == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_the_same_signal_again_ends_it_at_once(name: str) -> None:
    assert send("deferred", f"{name}:1.2", f"{name}:5") == 128 + signal.Signals[name]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_before_training_a_signal_ends_it_with_the_code_of_a_stop(name: str) -> None:
    assert send("starting", f"{name}:5") == 75


def test_a_signal_reaches_a_rank_that_waits_outside_of_python() -> None:
    """As in a collective: Python's own handlers would run only afterwards."""
    script = (
        "import ctypes, threading, os, signal\n"
        "from pretrain.stop import StopSignals\n"
        "StopSignals()\n"
        "threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()\n"
        "libc = ctypes.CDLL(None)\n"
        "while True: libc.usleep(3_000_000)\n"
        "print('never')\n"
    )
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert ended.returncode == 75 and "SIGTERM before training began" in ended.stderr
    assert time.monotonic() - began < 3


def test_the_time_limit_counts_from_the_start() -> None:
    signals = StopSignals.__new__(StopSignals)
    signals._received, signals._began = {}, time.monotonic() - 10
    assert signals.reason(0) is None and signals.reason(11) is None
    assert signals.reason(10) == "the time limit of 10 s"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting again from step 0 would throw the run away without a word."""
    (tmp_path / "checkpoints" / "step-00000005").mkdir(parents=True)
    monkeypatch.setattr(saving, "broadcast_from_main", lambda value: value)
    job = SimpleNamespace(
        config=SimpleNamespace(run_dir=str(tmp_path)),
        topology=SimpleNamespace(is_main=True),
        run_dir=tmp_path,
    )
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        saving.resume(job)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("resumed", "ended", "saves"),
    [
        ((0, False), (0, False), 0),
        ((6, True), (6, True), 0),
        ((6, True), (6, False), 1),
        ((6, False), (7, True), 1),
    ],
)
def test_the_end_saves_what_is_not_saved(
    monkeypatch: pytest.MonkeyPatch, resumed: tuple[int, bool], ended: tuple[int, bool], saves: int
) -> None:
    """An evaluation that was broken off, or made up for, counts as well as a step."""
    saved = []
    monkeypatch.setattr(saving, "take_snapshot", lambda engine, config, trainer, *_: saved.append(trainer))
    writer = SimpleNamespace(start=print, settle=lambda: None, take_written=lambda: None)
    monkeypatch.setattr(saving, "CheckpointWriter", lambda *_: writer)
    job, nothing = job_that_saves(SimpleNamespace(checkpoint=SimpleNamespace(async_save=True)))
    saving.Saves(job, nothing, nothing, saving.Position(*resumed)).finish(saving.Position(*ended))
    assert [(trainer["step"], trainer["evaluation_due"]) for trainer in saved] == [ended] * saves


def test_a_file_asks_for_a_stop_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.stop._LOOK_SECONDS", 0.0)
    file = StopFile(tmp_path)
    assert not file.look()
    (tmp_path / "stop").touch()
    assert file.look() and file.look()
    assert not (tmp_path / "stop").exists() and not StopFile(tmp_path).look()


def test_a_run_directory_that_was_removed_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryGoneError, match="gone was removed while the run trained") as caught:
        StopFile(tmp_path / "gone").look()
    assert caught.value.exit_code == 74
