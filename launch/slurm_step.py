"""Running srun from the batch process: the job, signals that are only noted, a step that is waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from launch.preflight import Wanted

END_SECONDS = 8.0
"""For srun to end its tasks after SIGTERM."""
KILL_ON_BAD_EXIT = "--kill-on-bad-exit=1"
"""srun's word by which the batch script (`launch.slurm`) makes one failed rank end all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """This start of a batch script."""

    job_id: str
    hosts: tuple[str, ...]
    """The nodes that SLURM gave, this one first."""
    run_dir: Path
    node_counts: tuple[int, ...]
    ranks_per_node: int
    max_failures: int
    timeout: float
    all_reduce_seconds: float
    wanted: Wanted
    start: tuple[str, ...]
    """`srun OPTIONS ... python`."""
    ranks: tuple[str, ...]
    """What follows the interpreter on every rank."""

    @property
    def name(self) -> str:
        """What people call it: the id, or `N_element` in an array."""
        array, element = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
        return f"{array}_{element}" if array and element else self.job_id

    def questions(self, hosts: Sequence[str], tasks_per_node: int, words: Sequence[str]) -> list[str]:
        """As `step`, but a task that fails does not end the others: each is to give its own answer."""
        return [word for word in self.step(hosts, tasks_per_node, words) if word != KILL_ON_BAD_EXIT]

    def step(self, hosts: Sequence[str], tasks_per_node: int, words: Sequence[str]) -> list[str]:
        """The command that runs Python with `words`, so many tasks on each of some nodes."""
        size = [f"--nodes={len(hosts)}", f"--ntasks={len(hosts) * tasks_per_node}"]
        size += [f"--ntasks-per-node={tasks_per_node}", f"--nodelist={','.join(hosts)}"]
        return [self.start[0], *size, *self.start[1:], *words]


def say(text: str) -> None:
    """One line in the job's log."""
    print(f"headwater: {time.strftime('%Y-%m-%dT%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Signals:
    """Notes the signals of the batch process; none of them ends it."""

    NOTED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []

    def __enter__(self) -> Signals:
        for number in self.NOTED:
            signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The handlers stay: what comes now is too late to change the verdict."""

    @property
    def save_requested(self) -> bool:
        """Whether the ranks have to be told; SIGTERM has reached them by itself."""
        return signal.SIGUSR1 in self.received or self.stop_requested

    @property
    def stop_requested(self) -> bool:
        """Whether the run shall rest."""
        return signal.SIGUSR2 in self.received or signal.SIGINT in self.received

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))


class Step:
    """One srun; leaving the block ends it."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, *, captured: bool = False
    ) -> None:
        # A session of its own: a signal to the batch process's group would reach the ranks twice.
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if captured else None,
            start_new_session=True,
        )

    def __enter__(self) -> Step:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            if self.wait(END_SECONDS) is None:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or None if it still runs after so long."""
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def send(self, number: signal.Signals) -> None:
        """Signal all tasks, through srun."""
        self._process.send_signal(number)

    def fileno(self) -> int:
        """The descriptor of its output, where that is captured."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()
