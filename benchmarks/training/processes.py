"""Starting candidates and asking them for rounds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import IO, Any

from benchmarks.training.candidate import KEPT_MEMORY, TWO_RANKS
from launch.plan import rank_environment

THREADS = os.cpu_count() or 1


class Candidate:
    """The processes of one candidate: one rank with every core, or two that share them."""

    def __init__(self, work: str, name: str) -> None:
        self.name = name
        self.ranks = 2 if name.endswith(TWO_RANKS) else 1
        self._log: IO[str] = tempfile.TemporaryFile("w+")
        port = _free_port()
        self._processes = [self._start(work, rank, port) for rank in range(self.ranks)]

    def _start(self, work: str, rank: int, port: int) -> subprocess.Popen[str]:
        launched = rank_environment({}, cores=THREADS, ranks_per_host=self.ranks, has_accelerator=False)
        if not (self.name.startswith("headwater") or self.name.endswith(KEPT_MEMORY)):
            del launched["GLIBC_TUNABLES"]  # peers are started as their users start them
        environment = {**os.environ, **launched, "HF_HUB_OFFLINE": "1"}
        if self.ranks > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks),
                "LOCAL_WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.training.candidate", work, self.name]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._log, text=True, env=environment
        )

    def round(self, steps: int) -> dict[str, Any]:
        """Run so many steps; the first rank's answer, with the memory of all ranks added up."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        answers = [self._answer(process) for process in self._processes]
        for key in ("cpu_seconds", "peak_rss", "base_rss", "faults"):
            answers[0][key] = sum(answer[key] for answer in answers)
        return answers[0]

    def wait_until_ready(self) -> None:
        """Return when all ranks are about to begin their first step."""
        for process in self._processes:
            self._line(process, "ready")

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._line(process, "round "))
        return answer

    def _line(self, process: subprocess.Popen[str], beginning: str) -> str:
        """The rest of the next line with this beginning."""
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(beginning):
                return line.removeprefix(beginning)
        self._log.seek(0)
        raise SystemExit(f"{self.name} ended with code {process.wait()}:\n{self._log.read()[-3000:]}")

    def __enter__(self) -> Candidate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        self._log.close()


def measured_limits(work: str) -> dict[str, float]:
    """What `limits` measures, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training.limits", work]
    environment = dict(os.environ, OMP_NUM_THREADS=str(THREADS))
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    limits: dict[str, float] = json.loads(done.stdout)
    return limits


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
