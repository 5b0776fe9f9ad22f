"""Whether the hosts of a hostfile can run a job together: what DeepSpeed would say late or not at all."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch.deepspeed_plan import BACKENDS, DeepspeedPlan
from launch.preflight import NodeFacts, Wanted, bad_nodes, read_line
from pretrain.config import ConfigError

CONNECT_SECONDS = 10
ANSWER_SECONDS = 30.0
PARALLEL = 32
SSH_FAILED = 255
"""ssh's own exit code; others are the remote command's."""


def problems_of_hosts(plan: DeepspeedPlan) -> list[str]:
    """Everything that is wrong with the hosts, each named."""
    if plan.node_rank is None:
        needed = BACKENDS[plan.backend]
        if shutil.which(needed) is None:
            return [f"no {needed} on PATH, which --launcher {plan.backend} needs; install it or use --no-ssh"]
        if plan.backend == "slurm":
            return _allocation_problems()
        if problems := _preflight(plan):
            return problems
    if plan.node_rank in (None, 0) and _is_taken(plan):
        where = f"port {plan.master_port} is taken on {plan.master_addr}"
        return [f"{where}: another job? Give another --master-port"]
    return []


def _allocation_problems() -> list[str]:
    if "SLURM_JOB_ID" in os.environ:
        return []
    return ["--launcher slurm runs within an allocation: call this in a batch script or under salloc"]


def _preflight(plan: DeepspeedPlan) -> list[str]:
    """Ask every host over ssh, side by side, what it has, and compare."""
    token = plan.run_dir / f".preflight-{secrets.token_hex(8)}"
    token.touch()
    try:
        with ThreadPoolExecutor(PARALLEL) as pool:
            said = list(pool.map(lambda host: _ask(host, plan.run_dir, token.name), plan.hosts))
    finally:
        token.unlink(missing_ok=True)
    silent = [answer for answer in said if isinstance(answer, str)]
    answers = [answer for answer in said if isinstance(answer, NodeFacts)]
    wanted = Wanted(run_dir=str(plan.run_dir))
    bad = bad_nodes([answer.host for answer in answers], answers, wanted, ANSWER_SECONDS)
    return [*silent, *(f"{host}: {problem}" for host, problem in bad.items())]


def _ask(host: str, run_dir: Path, token: str) -> NodeFacts | str:
    """What a host has, or why it cannot be said."""
    words = [
        sys.executable,
        "-m",
        "launch.node_facts",
        "--run-dir",
        str(run_dir.absolute()),
        "--token",
        token,
    ]
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))  # as DeepSpeed does
    remote = f"cd {shlex.quote(os.getcwd())} && PYTHONPATH={shlex.quote(path)} {shlex.join(words)}"
    command = ["ssh", "-oBatchMode=yes", f"-oConnectTimeout={CONNECT_SECONDS}", host, remote]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"{host} cannot be reached with ssh: no answer within {ANSWER_SECONDS:g} s"
    except FileNotFoundError:
        return f"{host} cannot be reached: no ssh on PATH"
    why = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
    if result.returncode == SSH_FAILED:
        return f"{host} cannot be reached with ssh without a password: {why}"
    for answer in read_line(result.stdout, time.time()):
        return NodeFacts({**answer.facts, "host": host}, answer.received)
    return f"{host}: {sys.executable} does not run there as it does here: {why}"


def _is_taken(plan: DeepspeedPlan) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex((_address(plan.master_addr), plan.master_port)) == 0


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ConfigError(f"{host}: {error.strerror or error}; give --master-addr") from error
