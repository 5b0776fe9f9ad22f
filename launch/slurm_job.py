"""The process of a batch script: checks the nodes, runs the ranks, decides whether the job goes on.

The script execs this on the first node of the job. Every attempt is one start of it:

    preflight on every node -> bad ones are left out -> srun of the ranks -> verdict -> end or requeue

Signals: SIGUSR1 (time limit, preemption) saves and requeues, SIGUSR2 (`headwater launch stop`) saves and
ends. SIGTERM comes from SLURM, which sends it to the ranks as well: after scancel the job ends, after a
preemption it goes back into the queue.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launch import attempts, slurm_control
from launch.lead_time import lead_seconds
from launch.preflight import Wanted
from launch.slurm_again import run_again
from launch.slurm_network import network_problems
from launch.slurm_nodes import listen_for_ranks, preflight
from launch.slurm_step import Job, Signals, Step, say
from launch.slurm_task import exit_codes
from launch.verdict import Ending, Verdict, crash, judge
from pretrain.config.exit_codes import CRASH, STOPPED, WRONG_INPUT

POLL_SECONDS = 1.0
LEAD_POLL_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one attempt; returns the exit code of the job."""
    job = _parse(argv)
    log_dir = job.run_dir / "logs"
    log_dir.mkdir(parents=True, exist_ok=True)
    failures = attempts.failures_in_a_row(log_dir, job.name)
    attempt = attempts.begin(log_dir, job=job.name, nodes=list(job.hosts), argv=list(job.ranks))
    say(f"attempt {attempt.number} on {', '.join(job.hosts)}")
    began = time.monotonic()
    with Signals() as signals:
        try:
            verdict, excluded = _run(job, attempt.number, signals, failures)
        except (OSError, slurm_control.SlurmError) as error:  # no free port, run_dir gone, no controller
            verdict, excluded = crash(str(error), CRASH, failures, job.max_failures), []
    attempt.record_end(
        verdict.exit_code, time.monotonic() - began, action=verdict.action, reason=verdict.reason
    )
    say(f"attempt {attempt.number}: {verdict.reason}")
    if verdict.action == "requeue":
        try:
            say(run_again(job.job_id, job.run_dir, attempt, excluded))
        except slurm_control.SlurmError as error:
            say(f"{error}; the job ends here, go on with: headwater launch resume {job.run_dir}")
    return verdict.exit_code


def _run(job: Job, attempt: int, signals: Signals, failures: int) -> tuple[Verdict, list[str]]:
    with listen_for_ranks(job.job_id) as port:
        address = f"{job.hosts[0]}:{port}"
        bad = preflight(job, address, signals)
    if signals.received:
        return _before_the_ranks(signals), []
    for host, problem in bad.items():
        say(f"preflight: {host}: {problem}")
    good = [host for host in job.hosts if host not in bad]
    if job.all_reduce_seconds and len(good) > 1:
        broken = network_problems(job, good, port, signals)
        if signals.received:
            return _before_the_ranks(signals), []
        for host, problem in broken.items():
            say(f"preflight: {host}: {problem}")
        if len(broken) == len(good):
            text = "no all-reduce between the nodes"
            return crash(text, CRASH, failures, job.max_failures), []
        bad |= broken
        good = [host for host in good if host not in broken]
    usable = [count for count in job.node_counts if count <= len(good)]
    if bad and (not usable or job.hosts[0] in bad):
        return _without_nodes(job, bad), list(bad)
    if not usable:
        text = f"{len(good)} nodes, but the batch divides over {', '.join(map(str, job.node_counts))} only"
        return Verdict("give up", WRONG_INPUT, text), []
    hosts = good[: usable[-1]]
    if len(hosts) < len(good):
        say(f"{len(good) - len(hosts)} of {len(good)} nodes stay idle: the batch divides over {len(hosts)}")
    return _run_ranks(job, attempt, signals, hosts, port, failures), []


def _before_the_ranks(signals: Signals) -> Verdict:
    name = signals.received[-1].name
    if signals.stop_requested or signal.SIGTERM in signals.received:
        return Verdict("stop", STOPPED, f"{name} before any rank had started")
    return Verdict("requeue", STOPPED, f"{name} before any rank had started")


def _without_nodes(job: Job, bad: dict[str, str]) -> Verdict:
    if len(bad) == len(job.hosts):
        return Verdict(
            "give up", WRONG_INPUT, "no node passed the preflight; put right what it says and submit again"
        )
    return Verdict("requeue", STOPPED, f"left out by the preflight: {', '.join(bad)}")


def _run_ranks(
    job: Job, attempt: int, signals: Signals, hosts: list[str], port: int, failures: int
) -> Verdict:
    place = ["--log-dir", str(job.run_dir / "logs"), "--attempt", str(attempt)]
    words = ["-m", "launch.slurm_task", *place, "--ranks-per-node", str(job.ranks_per_node), "--", *job.ranks]
    env = {"MASTER_ADDR": hosts[0], "MASTER_PORT": str(port), "HEADWATER_ATTEMPT": str(attempt)}
    world_size = len(hosts) * job.ranks_per_node
    with Step(job.step(hosts, job.ranks_per_node, words), env) as step:
        code, asked = _wait(job, step, signals)
    fields = slurm_control.patiently(lambda: slurm_control.job_fields(job.job_id))
    return judge(
        Ending(
            codes=exit_codes(job.run_dir / "logs", attempt, world_size),
            world_size=world_size,
            step_code=code,
            asked=asked or bool(signals.received),
            stop_requested=signals.stop_requested,
            cancelled=fields.get("JobState") != "RUNNING",
            requeued=int(fields.get("Restarts", "0")) > int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            hosts=tuple(hosts),
            failures=failures,
            max_failures=job.max_failures,
        )
    )


def _wait(job: Job, step: Step, signals: Signals) -> tuple[int, bool]:
    """Wait for the ranks; ask them once to save: on a signal, or when the measured lead time has come.

    Returns:
        srun's exit code, and whether the ranks were asked.
    """
    began, look_at = time.time(), 0.0
    fields: dict[str, str] = {}
    asked, ask_at = False, math.inf
    while (code := step.wait(POLL_SECONDS)) is None:
        if not asked and time.time() >= look_at:
            look_at = time.time() + LEAD_POLL_SECONDS
            with suppress(slurm_control.SlurmSilentError):  # busy; asked again at the next look
                fields = fields or slurm_control.job_fields(job.job_id)
            if (end := slurm_control.end_time(fields)) is not None:
                lead = lead_seconds(job.run_dir, int(end - began))
                ask_at = end - lead - LEAD_POLL_SECONDS
        due = time.time() >= ask_at
        if not asked and (due or signals.save_requested):
            say("the time limit is near: saving" if due else f"{signals.received[-1].name}: saving")
            step.send(signal.SIGUSR1)
            asked = True
    return code, asked


def _parse(argv: Sequence[str] | None) -> Job:
    parser = argparse.ArgumentParser(prog="launch.slurm_job", description="Run one attempt of a SLURM job.")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--node-counts", required=True, help="numbers of nodes to run on, as 2,4,8")
    parser.add_argument("--ranks-per-node", type=int, required=True)
    parser.add_argument("--max-failures", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=50.0, help="seconds for the preflight")
    parser.add_argument("--all-reduce", type=float, default=0.0, help="seconds for one; 0 for none")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--min-memory-gb", type=float, default=0.0)
    parser.add_argument("--min-disk-gb", type=float, default=0.0)
    parser.add_argument("--scratch", action="append", default=[])
    parser.add_argument("--min-scratch-gb", type=float, default=0.0)
    parser.add_argument("--max-clock-skew", type=float, default=30.0)
    words = list(sys.argv[1:] if argv is None else argv)
    first = words.index("--")
    second = words.index("--", first + 1)
    args = parser.parse_args(words[:first])
    return Job(
        job_id=os.environ["SLURM_JOB_ID"],
        hosts=tuple(slurm_control.host_names(os.environ["SLURM_JOB_NODELIST"])),
        run_dir=args.run_dir,
        node_counts=tuple(sorted(int(count) for count in args.node_counts.split(","))),
        ranks_per_node=args.ranks_per_node,
        max_failures=args.max_failures,
        timeout=args.timeout,
        all_reduce_seconds=args.all_reduce,
        wanted=Wanted(
            gpus=args.gpus,
            min_memory_gb=args.min_memory_gb,
            min_disk_gb=args.min_disk_gb,
            run_dir=str(args.run_dir),
            scratch_paths=tuple(args.scratch),
            min_scratch_gb=args.min_scratch_gb,
            max_clock_skew_seconds=args.max_clock_skew,
        ),
        start=tuple(words[first + 1 : second]),
        ranks=tuple(words[second + 1 :]),
    )


if __name__ == "__main__":
    sys.exit(main())
