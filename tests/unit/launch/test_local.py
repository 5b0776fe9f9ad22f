"""The local backend with fake ranks: real processes, no torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]
WAIT_SECONDS = 30


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a launcher in the background; what a failed test leaves is killed."""
    started = []

    def start(nproc: int, **behaviours: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.launch.run_plan", str(tmp_path / "run"), str(nproc)],
            cwd=REPO,
            env={**os.environ, **behaviours},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str, str]]:
    """Run a launcher to its end: exit code, stdout, stderr."""

    def run(nproc: int, **behaviours: str) -> tuple[int, str, str]:
        process = start(nproc, **behaviours)
        out, err = process.communicate(timeout=WAIT_SECONDS)
        return process.returncode, out, err

    return run


def log_of(tmp_path: Path, rank: int) -> str:
    return (tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text()


def wait_for(text: str, read: Callable[[], str]) -> str:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            content = read()
        except FileNotFoundError:
            content = ""
        if text in content:
            return content
        time.sleep(0.02)
    raise AssertionError(f"{text!r} never appeared")


def test_every_rank_gets_its_place_and_the_command(run, tmp_path):
    code, out, _ = run(2, FAKE_RANK="environment")
    assert code == 0
    for rank in range(2):
        log = log_of(tmp_path, rank)
        assert f"RANK={rank} WORLD_SIZE=2 LOCAL_RANK={rank} LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1" in log
        assert "argv --config run.yaml --set a.b=x y" in log
    ports = {
        line.split("MASTER_PORT=")[1].split()[0]
        for r in range(2)
        for line in log_of(tmp_path, r).splitlines()
        if "MASTER_PORT=" in line
    }
    assert len(ports) == 1
    assert "RANK=0" in out and "RANK=1" not in out


def test_rank_0_goes_to_the_terminal_streams_and_all_ranks_to_logs(run, tmp_path):
    code, out, err = run(2)
    assert code == 0
    assert "rank 0 begins" in out and "rank 0 on stderr" in err
    assert "rank 1" not in out + err
    for rank in range(2):
        log = log_of(tmp_path, rank)
        assert f"rank {rank} begins" in log and f"rank {rank} on stderr" in log


def test_logs_append_with_a_header_for_each_attempt(run, tmp_path):
    run(1)
    run(1, FAKE_RANK="exit:3")
    headers = [line for line in log_of(tmp_path, 0).splitlines() if line.startswith("=== attempt")]
    assert [header.split(",")[0] for header in headers] == ["=== attempt 1", "=== attempt 2"]
    lines = (tmp_path / "run" / "logs" / "attempts.jsonl").read_text().splitlines()
    ends = [json.loads(line)["exit_code"] for line in lines if "exit_code" in line]
    assert ends == [0, 3] and len(lines) == 4


def test_an_end_that_cannot_be_recorded_leaves_the_exit_code(start, tmp_path):
    launcher = start(1, FAKE_RANK="save-on:SIGTERM")
    wait_for("rank 0 ready", lambda: log_of(tmp_path, 0))
    shutil.rmtree(tmp_path / "run")
    launcher.send_signal(signal.SIGTERM)
    _, err = launcher.communicate(timeout=WAIT_SECONDS)
    assert launcher.returncode == 75, err
    assert "the end of attempt 1 is not on record" in err and "Traceback" not in err


def test_of_a_redrawn_line_the_log_keeps_the_last_state(run, tmp_path):
    _, out, _ = run(1, FAKE_RANK="progress")
    assert "step 2" in out
    lines = log_of(tmp_path, 0).splitlines()
    assert "step 3" in lines and "done" in lines
    assert not any("step 2" in line for line in lines)


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (1, 1), (75, 75)])
def test_exit_codes_are_passed_on(run, code, expected):
    assert run(2, FAKE_RANK=f"exit:{code}")[0] == expected


def test_a_dead_rank_ends_the_others_and_is_named_with_its_log(run, tmp_path):
    code, _, err = run(3, FAKE_RANK="hang", FAKE_RANK_1="exit:7")
    assert code == 7
    assert "rank 1 of 3 failed with exit code 7" in err
    assert "rank-1.log" in err and "| rank 1 on stderr" in err
    assert "killed the ranks that were left waiting for it: 0, 2" in err


def test_a_killed_rank_gives_128_plus_the_signal(run):
    code, _, err = run(1, FAKE_RANK="suicide")
    assert code == 137
    assert "killed by SIGKILL" in err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_signals_reach_every_rank(start, tmp_path, name):
    launcher = start(2, FAKE_RANK=f"save-on:{name}")
    for rank in range(2):
        wait_for(f"rank {rank} ready", lambda rank=rank: log_of(tmp_path, rank))
    launcher.send_signal(signal.Signals[name])
    _, err = launcher.communicate(timeout=WAIT_SECONDS)
    assert launcher.returncode == 75
    assert "stopped; run the same command again to go on" in err
    for rank in range(2):
        assert f"rank {rank} saved on {name}" in log_of(tmp_path, rank)


def test_a_closed_terminal_asks_the_ranks_to_save(start, tmp_path):
    launcher = start(1, FAKE_RANK="save-on:SIGTERM")
    wait_for("rank 0 ready", lambda: log_of(tmp_path, 0))
    launcher.send_signal(signal.SIGHUP)
    launcher.communicate(timeout=WAIT_SECONDS)
    assert launcher.returncode == 75


def test_a_second_interrupt_ends_hanging_ranks(start, tmp_path):
    launcher = start(2, FAKE_RANK="hang")
    for rank in range(2):
        wait_for("ready", lambda rank=rank: log_of(tmp_path, rank))
    launcher.send_signal(signal.SIGINT)
    for rank in range(2):  # signals of one kind that are pending together would arrive as one
        wait_for(f"ignores signal {signal.SIGINT.value}", lambda rank=rank: log_of(tmp_path, rank))
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=WAIT_SECONDS)
    assert launcher.returncode == 128 + signal.SIGINT
    assert "ended at once by SIGINT; what was saved before stays" in err


def test_kill_9_of_the_launcher_takes_the_ranks_along(start, tmp_path):
    launcher = start(2, FAKE_RANK="hang")
    pids = []
    for rank in range(2):
        text = wait_for("ready, pid", lambda rank=rank: log_of(tmp_path, rank))
        pids.append(int(text.split("ready, pid ")[1].split()[0]))
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + WAIT_SECONDS
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
