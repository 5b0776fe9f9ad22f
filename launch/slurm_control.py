"""The few words that a job, or a person's command, says to the SLURM controller."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from pretrain.config import ConfigError

Result = TypeVar("Result")
RETRY_SECONDS = 10.0
RETRIES = 5
COMMAND_SECONDS = 45.0
"""A controller that does not answer by then is reported."""
_ALREADY_QUEUED = "Job is pending execution"
"""What SLURM says where it has requeued a job by itself, because a node was lost."""
_THROUGH_SIGTERM = ("sh", "-c", 'trap "" TERM; exec "$@"', "sh")
"""Before a command: SLURM sends SIGTERM to all processes of a job that it ends, and the answer tells why."""


class SlurmError(ConfigError):
    """SLURM refused, does not answer or is not here; the message is SLURM's own with what to do."""


class SlurmSilentError(SlurmError):
    """The controller did not answer: whether it has done what it was asked for is not known."""


class RequeueRefusedError(SlurmError):
    """The cluster does not let this job go back into the queue; the job is as it was."""


def patiently(command: Callable[[], Result]) -> Result:
    """Repeat a command while the controller does not answer, as happens on busy clusters and at restarts.

    Raises:
        SlurmError: If it refuses, or still does not answer.
    """
    for _ in range(RETRIES):
        try:
            return command()
        except SlurmSilentError:
            time.sleep(RETRY_SECONDS)
    return command()


def submit(script: str) -> str:
    """Submit a script; the job's id.

    Raises:
        SlurmError: If there is no SLURM here or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise SlurmError("no sbatch on PATH: run this on a machine that submits to SLURM, or add --dry-run")
    return _slurm(["sbatch", "--parsable", script], "sbatch refused the job").strip().partition(";")[0]


def host_names(node_list: str) -> list[str]:
    """The nodes of a list such as `node[1-4,7]`, in order."""
    return _slurm(["scontrol", "show", "hostnames", node_list], "scontrol failed").split()


def job_fields(job: str) -> dict[str, str]:
    """What the controller says of a job (the first element of an array); empty if it knows it no more."""
    return next(iter(all_fields(job)), {})


def all_fields(job: str) -> list[dict[str, str]]:
    """What the controller says of a job, or of each element of an array; empty if it knows it no more."""
    try:
        text = _slurm(["scontrol", "--oneliner", "show", "job", job], "scontrol failed")
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    lines = [line for line in text.splitlines() if line.startswith("JobId=")]
    return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]


def end_time(fields: dict[str, str]) -> float | None:
    """When a job reaches its time limit, in seconds since the epoch; None without a limit."""
    text = fields.get("EndTime", "Unknown")
    return None if text in ("Unknown", "None", "N/A") else datetime.fromisoformat(text).timestamp()


def requeue(job: str, excluded: Sequence[str] = ()) -> None:
    """Put the running job that calls this back into the queue, never again to run on these nodes.

    SLURM ends the caller in doing so: SIGTERM now, SIGKILL after its KillWait (30 s).

    Raises:
        RequeueRefusedError: Some clusters allow no requeues, or this job was submitted with --no-requeue.
        SlurmError: If the controller refuses later, or does not answer.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    nodes = all_excluded(job, excluded)
    # The list can be changed only while the job does not run.
    command = "requeuehold" if excluded else "requeue"
    try:
        _slurm(["scontrol", command, job], "cannot requeue the job")
    except SlurmSilentError:
        raise
    except SlurmError as error:
        if _ALREADY_QUEUED not in str(error):
            raise RequeueRefusedError(error.problems) from error
    if not excluded:
        return
    _slurm(["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"], f"cannot exclude {nodes}")
    _slurm(["scontrol", "release", job], "cannot release the job")


def all_excluded(job: str, excluded: Sequence[str]) -> str:
    """The nodes that a job must not run on, with those that it was submitted without: `a,b`, or nothing."""
    if not excluded:
        return ""
    earlier = job_fields(job).get("ExcNodeList", "(null)")
    return ",".join([*([] if earlier == "(null)" else [earlier]), *excluded])


def resubmit(job: str, excluded: Sequence[str] = (), element: str | None = None) -> str:
    """Submit the script of the running job that calls this once more, to start when the job has ended.

    Args:
        job: Its id.
        excluded: Nodes never to run on.
        element: Its number in an array; only that one is submitted.

    Returns:
        The new job's id; for an array that of the array.

    Raises:
        SlurmError: If the controller refuses.
    """
    script = _slurm(["scontrol", "write", "batch_script", job, "-"], "cannot read the job's script")
    words = [f"--dependency=afterany:{job}"]
    if nodes := all_excluded(job, excluded):
        words.append(f"--exclude={nodes}")
    if element is not None:
        words.append(f"--array={element}")
    # What SLURM told this job about itself must not become options or variables of the next.
    own = ("SLURM_", "SLURMD_", "SBATCH_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    env |= {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    told = _slurm(["sbatch", "--parsable", *words], "cannot submit the job again", script, env)
    return told.strip().partition(";")[0]


def send(job: str, name: str) -> None:
    """Signal the process of a job's script only."""
    _slurm(["scancel", "--batch", f"--signal={name}", job], "scancel failed")


def cancel_queued(job: str) -> None:
    """Remove a job, or those elements of an array, that have not begun."""
    _slurm(["scancel", "--state=PENDING", job], "scancel failed")


def _slurm(
    command: list[str], problem: str, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> str:
    if shutil.which(command[0]) is None:
        raise SlurmError(f"no {command[0]} on PATH: run this on a machine with the SLURM commands")
    try:
        result = subprocess.run(
            [*_THROUGH_SIGTERM, *command],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=COMMAND_SECONDS,
            env={**(os.environ if env is None else env), "SLURM_TIME_FORMAT": "standard"},
        )
    except subprocess.TimeoutExpired:
        text = f"{problem}: `{command[0]}` had no answer within {COMMAND_SECONDS:.0f} s"
        raise SlurmSilentError(text) from None
    if result.returncode:
        words = "; ".join((result.stderr.strip() or result.stdout.strip()).splitlines())
        if any(sign in words for sign in ("Unable to contact", "timed out")):
            raise SlurmSilentError(f"{problem}: {words}")
        raise SlurmError(f"{problem}: {words}")
    return result.stdout
