"""One rank of a SLURM job: `srun python -m launch.slurm_task ... -- -m pretrain.train --config FILE`.

Tells the rank its place from what srun says, writes its output to `<run_dir>/logs/rank-N.log` and, when it
ends, its exit code behind that: srun itself reports one code for all tasks, often that of its own kill.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from launch.machine import usable_cores
from launch.output import LogFile, Tee
from launch.plan import rank_environment
from pretrain.config.environment import has_accelerator
from pretrain.config.exit_codes import OK, STOPPED

PEER_GRACE_SECONDS = 5.0
"""A failed rank's task stays this long: srun then kills the others, who should say why they end."""

# SLURM signals every process of a step, the rank as well as this one.
_LEFT_TO_THE_RANK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; 0 also after it saved and stopped, so that srun does not kill the others."""
    args = _parse(argv)
    place = place_from_slurm(os.environ, args.ranks_per_node)
    rank, host = int(place["RANK"]), os.environ.get("SLURMD_NODENAME", "?")
    log = LogFile(args.log_dir / f"rank-{rank}.log")
    about = f"attempt {args.attempt}, rank {rank} of {place['WORLD_SIZE']}, {host}"
    log.write_line(f"=== {about}, {_now()} ===".encode())
    code = _run([sys.executable, *args.command], {**os.environ, **place}, log, shown=rank == 0)
    log.write_line(f"--- {about}: exit code {code}, {_now()} ---".encode())
    log.close()
    if code in (OK, STOPPED):
        return 0
    print(
        f"headwater: {about}: exit code {code}; its log is {args.log_dir / f'rank-{rank}.log'}",
        file=sys.stderr,
    )
    time.sleep(PEER_GRACE_SECONDS)
    return code


def place_from_slurm(env: Mapping[str, str], ranks_per_node: int) -> dict[str, str]:
    """A rank's place and the settings that all ranks share.

    Raises:
        SystemExit: If srun did not start this process.
    """
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS") if name not in env]
    if missing:
        raise SystemExit(f"headwater: error: {', '.join(missing)} is not set: start this with srun")
    cores = int(env.get("SLURM_CPUS_PER_TASK", 0)) or max(1, usable_cores() // ranks_per_node)
    shared = rank_environment(env, cores=cores, ranks_per_host=1, has_accelerator=has_accelerator())
    return {
        **shared,
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(ranks_per_node),
        "HEADWATER_LAUNCHER": "slurm",  # its log is written here
    }


def exit_codes(log_dir: Path, attempt: int, world_size: int) -> dict[int, int]:
    """What the ranks' logs say about the end of an attempt; a rank that left no word is absent."""
    codes = {}
    for rank in range(world_size):
        pattern = rf"^--- attempt {attempt}, rank {rank} of \d+, .*: exit code (\d+), .* ---$"
        try:
            end = _last_bytes(log_dir / f"rank-{rank}.log")
        except FileNotFoundError:
            continue
        if found := re.findall(pattern, end, re.MULTILINE):
            codes[rank] = int(found[-1])
    return codes


def _run(command: list[str], env: Mapping[str, str], log: LogFile, shown: bool) -> int:
    """Run the rank; its exit code as a shell has it. Rank 0 also writes to the job's output."""
    for number in _LEFT_TO_THE_RANK:
        signal.signal(number, lambda *_: None)  # a handler, unlike SIG_IGN, is not inherited
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if shown else log.fileno(),
        stderr=subprocess.PIPE if shown else subprocess.STDOUT,
    )
    tees = []
    if shown:
        assert process.stdout is not None and process.stderr is not None
        tees = [Tee(process.stdout, sys.stdout.buffer, log), Tee(process.stderr, sys.stderr.buffer, log)]
    for tee in tees:
        tee.start()
    code = process.wait()
    for tee in tees:
        tee.join(timeout=PEER_GRACE_SECONDS)  # an orphan may hold the pipe open
    return 128 - code if code < 0 else code


def _last_bytes(path: Path, count: int = 4096) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - count))
        return file.read().decode("utf-8", "replace")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.slurm_task", description="Run one rank of a SLURM job.")
    parser.add_argument("--log-dir", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--ranks-per-node", type=int, required=True)
    parser.add_argument("command", nargs="+", help="what follows the name of the interpreter")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
