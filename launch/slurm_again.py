"""How a job goes on: back into the queue or, where the cluster refuses that, as a new job after this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch import slurm_control
from launch.attempts import Attempt
from launch.record import FILE_NAME, read_record, write_record


def run_again(job: str, run_dir: Path, attempt: Attempt, excluded: Sequence[str]) -> str:
    """Let the job that calls this run again, never on the excluded nodes; what was done, for the log.

    Raises:
        SlurmError: If neither can be had.
    """
    without = f" without {', '.join(excluded)}" if excluded else ""
    try:
        slurm_control.patiently(lambda: slurm_control.requeue(job, excluded))
    except slurm_control.RequeueRefusedError as refusal:
        new = slurm_control.patiently(lambda: _as_new_job(job, run_dir, excluded))
        attempt.record(next_job=new)
        return f"{refusal}; submitted as job {new} instead{without}, which starts when this one has ended"
    return f"requeued{without}"


def _as_new_job(job: str, run_dir: Path, excluded: Sequence[str]) -> str:
    element = os.environ.get("SLURM_ARRAY_TASK_ID")
    new = slurm_control.resubmit(job, excluded, element)
    if element is not None:
        new = f"{new}_{element}"
    if (run_dir / FILE_NAME).exists():  # not with a script that was submitted by hand
        write_record(run_dir, replace(read_record(run_dir), job_id=new))
    return new
