"""The few words that a job, or a person's command, says to the SLURM controller."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from datetime import datetime

from pretrain.config import ConfigError

COMMAND_SECONDS = 45.0
"""A controller that does not answer by then is reported."""


class SlurmError(ConfigError):
    """SLURM refused, does not answer or is not here; the message is SLURM's own with what to do."""


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
    """What the controller says of a job (the first one of an array); empty if it knows it no more."""
    try:
        text = _slurm(["scontrol", "--oneliner", "show", "job", job], "scontrol failed")
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    lines = [line for line in text.splitlines() if line.startswith("JobId=")]
    return dict(re.findall(r"(\S+?)=(\S*)", lines[0])) if lines else {}


def end_time(fields: dict[str, str]) -> float | None:
    """When a job reaches its time limit, in seconds since the epoch; None without a limit."""
    text = fields.get("EndTime", "Unknown")
    return None if text in ("Unknown", "None", "N/A") else datetime.fromisoformat(text).timestamp()


def requeue(job: str, excluded: Sequence[str] = ()) -> None:
    """Put the running job that calls this back into the queue, never again to run on these nodes.

    SLURM ends the caller in doing so: SIGTERM now, SIGKILL after its KillWait (30 s).

    Raises:
        SlurmError: If the controller refuses.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # also for scontrol, which inherits it
    if not excluded:
        _slurm(["scontrol", "requeue", job], "cannot requeue the job")
        return
    earlier = job_fields(job).get("ExcNodeList", "(null)")
    nodes = ",".join([*([] if earlier == "(null)" else [earlier]), *excluded])
    # The list can be changed only while the job does not run.
    _slurm(["scontrol", "requeuehold", job], "cannot requeue the job")
    _slurm(["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"], f"cannot exclude {nodes}")
    _slurm(["scontrol", "release", job], "cannot release the job")


def send(job: str, name: str) -> None:
    """Signal the process of a job's script only."""
    _slurm(["scancel", "--batch", f"--signal={name}", job], "scancel failed")


def cancel(job: str) -> None:
    """Remove a job."""
    _slurm(["scancel", job], "scancel failed")


def _slurm(command: list[str], problem: str) -> str:
    if shutil.which(command[0]) is None:
        raise SlurmError(f"no {command[0]} on PATH: run this on a machine with the SLURM commands")
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            env=os.environ | {"SLURM_TIME_FORMAT": "standard"},
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{problem}: `{command[0]}` had no answer within {COMMAND_SECONDS:.0f} s") from None
    if result.returncode:
        words = "; ".join((result.stderr.strip() or result.stdout.strip()).splitlines())
        raise SlurmError(f"{problem}: {words}")
    return result.stdout
