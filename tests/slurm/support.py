"""A real SLURM cluster of two nodes on this machine, and words to use it in tests."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.support.runs import environment, rows, start, tiny_run

SCRIPTS = Path(__file__).parent / "cluster"
ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"}
)
_POLL_SECONDS = 0.1

STEPS = 300
START_SECONDS = 240.0
"""For four ranks to import torch on two cores."""

# No dropout: its random numbers depend on the layout. A constant rate: others depend on the number of steps.
OVERRIDES = (
    *("model.hidden_dropout=0.0", "model.attention_dropout=0.0", "training.eval_interval=0"),
    "schedule.kind=constant",
    *("checkpoint.save_interval=20", "parallel.tensor_model_parallel_size=2"),
)

Result = TypeVar("Result")


def run_words(corpus: Path, run_dir: Path, steps: int = STEPS) -> list[str]:
    """The run that every test of training makes: a GPT at TP=2. Its losses do not depend on its length."""
    words = tiny_run("gpt", corpus, run_dir, steps=steps)
    return [*words, *(word for text in OVERRIDES for word in ("--set", text))]


def losses(run_dir: Path) -> list[float]:
    """The loss of each step."""
    return [row["loss"] for row in rows(run_dir) if "loss" in row]


class NoClusterError(Exception):
    """This machine cannot hold a cluster; the message says why."""


@dataclass(frozen=True)
class Job:
    """What the controller says of a job, or of one element of an array."""

    fields: dict[str, str]

    @property
    def state(self) -> str:
        return self.fields["JobState"]

    @property
    def element(self) -> int | None:
        """Its number in the array; None for a job that is none, or elements that have not begun yet."""
        number = self.fields.get("ArrayTaskId", "")
        return int(number) if number.isdigit() else None

    @property
    def node(self) -> str:
        return self.fields.get("BatchHost", "")

    @property
    def restarts(self) -> int:
        return int(self.fields.get("Restarts", "0"))


@dataclass(frozen=True)
class Cluster:
    """A running cluster; its files lie in `directory`."""

    directory: Path

    @classmethod
    def start(cls, directory: Path, *options: str) -> Cluster:
        """Start one, see cluster/up.sh.

        Raises:
            NoClusterError: this machine cannot.
        """
        command = [SCRIPTS / "up.sh", directory, "--install", *options]
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if result.returncode in (3, 4):
            shutil.rmtree(directory)
            raise NoClusterError(result.stderr.strip())
        cluster = cls(directory)
        if result.returncode:
            cluster.stop()
        assert result.returncode == 0, result.stderr
        return cluster

    def stop(self) -> None:
        """Switch everything off and remove the directory."""
        subprocess.run([SCRIPTS / "down.sh", self.directory], check=True, timeout=60)

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to talk to this cluster."""
        return environment() | {"SLURM_CONF": str(self.directory / "etc" / "slurm.conf")}

    def run(self, *command: str | Path) -> str:
        """Run a command that must succeed, as on a login node; its output."""
        result = subprocess.run(
            [str(word) for word in command], env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def submit(self, *words: str | Path) -> str:
        """Submit a job with sbatch; its id."""
        return self.run("sbatch", "--parsable", *words).partition(";")[0]

    def jobs(self, job: str) -> list[Job]:
        """The job; all elements of an array."""
        lines = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [Job(dict(re.findall(r"(\S+?)=(\S*)", line))) for line in lines if line.startswith("JobId=")]

    def wait(self, jobs: Sequence[str], states: frozenset[str] = ENDED, seconds: float = 90.0) -> list[Job]:
        """Wait until every element of the jobs is in one of these states; returns them."""

        def reached() -> list[Job] | None:
            found = [element for job in jobs for element in self.jobs(job)]
            return found if all(element.state in states for element in found) else None

        return self.until(reached, f"jobs {' '.join(jobs)} in {', '.join(sorted(states))}", seconds)

    def nodes_are_idle(self, seconds: float = 60.0) -> None:
        """Wait until every node can take jobs."""
        self.until(
            lambda: set(self.run("sinfo", "-h", "-o", "%t").split()) == {"idle"}, "idle nodes", seconds
        )

    def node(self, operation: str, name: str, *command: str) -> str:
        """Operate a node, see cluster/node.sh: boot, crash, cable-out, cable-in, kill-slurmd, exec, ..."""
        return self.run(SCRIPTS / "node.sh", self.directory, operation, name, *command)

    def start_on(self, name: str, *command: str | Path) -> subprocess.Popen[str]:
        """Start a command on a node."""
        return start([str(word) for word in (SCRIPTS / "node.sh", self.directory, "exec", name, *command)])

    def until(self, attempt: Callable[[], Result], what: str, seconds: float = 60.0) -> Result:
        """Repeat an attempt until it returns something true; returns that."""
        deadline = time.monotonic() + seconds
        while not (result := attempt()):
            assert time.monotonic() < deadline, (
                f"not after {seconds:.0f} s: {what}\n{self.run('squeue', '-l')}"
            )
            time.sleep(_POLL_SECONDS)
        return result
