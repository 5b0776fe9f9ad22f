"""SLURM's commands without a cluster: `install(directory)` puts srun, scontrol, sbatch and scancel there.

srun runs the tasks as processes here, each with the variables of its place; what is said to the controller is
written to FAKE_SLURM/said.jsonl, and FAKE_SLURM/job holds what it answers about the job.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

JOB = (
    "JobId=7 JobName=x JobState={state} Reason=None Restarts={restarts} EndTime={end} ExcNodeList={excluded} "
    "NodeList=node[1-2]\n"
)
SCRIPT = "#!/bin/bash\n# what the controller has kept of the job\n"
TASK = (
    "import sys; from launch import slurm_task as task; task.PEER_GRACE_SECONDS = 0.5; sys.exit(task.main())"
)
"""launch.slurm_task, but a failed rank does not stay for 5 s: this srun ends no others meanwhile."""


def install(
    directory: Path,
    *,
    state: str = "RUNNING",
    end: str = "Unknown",
    excluded: str = "(null)",
    restarts: int = 0,
) -> None:
    """Write the commands and the state of the job."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("srun", "scontrol", "sbatch", "scancel"):
        path = directory / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)
    (directory / "job").write_text(JOB.format(state=state, end=end, excluded=excluded, restarts=restarts))


def said(directory: Path) -> list[list[str]]:
    """What the controller was told, in order."""
    path = directory / "said.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(name: str, words: list[str]) -> int:
    place = Path(os.environ["FAKE_SLURM"])
    if name == "srun":
        return srun(words)
    if words[:2] == ["show", "hostnames"]:
        print("\n".join(words[2].split(",")))
        return 0
    if "show" in words and is_silent(place):
        print(f"{name}: error: {os.environ['FAKE_SLURM_SILENT']}", file=sys.stderr)
        return 1
    if "show" in words:
        print((place / "job").read_text(), end="")
        return 0
    with open(place / "said.jsonl", "a") as file:
        file.write(json.dumps([name, *words]) + "\n")
    if refusal := os.environ.get("FAKE_SLURM_REFUSES"):
        print(f"{name}: error: {refusal}", file=sys.stderr)
        return 1
    if words[:1] in (["requeue"], ["requeuehold"]) and (
        refusal := os.environ.get("FAKE_SLURM_REFUSES_REQUEUE")
    ):
        print(f"{name}: error: {refusal}", file=sys.stderr)
        return 1
    if words[:2] == ["write", "batch_script"]:
        print(SCRIPT, end="")
    if name == "sbatch":
        (place / "submitted").write_text("" if sys.stdin.isatty() else sys.stdin.read())
        print("7")
    return 0


def is_silent(place: Path) -> bool:
    """Whether this question is one of those that the controller does not answer."""
    path = place / "silent"
    left = int(path.read_text()) if path.exists() else 0
    path.write_text(str(max(0, left - 1)))
    return left > 0


def srun(words: list[str]) -> int:
    """Run the tasks; a signal goes to all of them, a failed one ends the others."""
    command = next(i for i, word in enumerate(words) if not word.startswith("-"))
    options = dict(re.findall(r"--([\w-]+)=(\S+)", " ".join(words[:command])))
    hosts, per_node = options["nodelist"].split(","), int(options["ntasks-per-node"])
    silent = os.environ.get("FAKE_SILENT_NODES", "").split(",")
    tasks = []
    for rank in range(len(hosts) * per_node):
        host = hosts[rank // per_node]
        if host in silent:
            continue
        env = {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % per_node),
            "SLURM_STEP_NUM_TASKS": options["ntasks"],
            "SLURMD_NODENAME": host,
        }
        tasks.append(
            subprocess.Popen(task_command(words[command:]), env=os.environ | env, start_new_session=True)
        )
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda n, _: [os.killpg(task.pid, n) for task in tasks if task.poll() is None])
    codes = [task.wait() for task in tasks]
    return max(abs(code) for code in codes) if codes else 1


def task_command(words: list[str]) -> list[str]:
    """The command of a task; that of a rank with its waits shortened."""
    if words[1:3] != ["-m", "launch.slurm_task"]:
        return words
    return [words[0], "-c", TASK, *words[3:]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
