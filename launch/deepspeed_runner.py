"""`headwater launch deepspeed`: the same run through DeepSpeed's own launcher, rendered and started.

Facts of deepspeed 0.19.8 that shape this: its pdsh and openmpi backends pass on few variables, the others go
into `.deepspeed_env` in the working directory; it guesses the first host from `hostname -I`, so that
is given; it would run a single host of the hostfile here instead of there.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.check_data import data_findings
from launch.machine import free_port
from launch.record import LaunchRecord, write_record
from pretrain.config import ConfigError, load_config
from pretrain.config.arguments import add_run_arguments, positive_int
from pretrain.config.identity import check_run_directory

BACKENDS = {"pdsh": "pdsh", "openmpi": "ompi_info"}
"""Ways to reach the other hosts, each with the program that it needs."""

EXAMPLES = """examples:
  headwater launch deepspeed --hostfile hosts --config configs/gpt/1b3.yaml --env NCCL_DEBUG=WARN
  headwater launch deepspeed --hostfile hosts --config configs/gpt/1b3.yaml --no-ssh --node-rank 1

A signal to this command does not save: DeepSpeed ends the ranks. Set training.time_limit_seconds, or launch
with SLURM. The same command resumes from the newest checkpoint.
"""
SSH_SECONDS = 10
_HOST_LINE = re.compile(r"(\S+)\s+slots=([1-9]\d*)\s*(?:#.*)?")
ENVIRONMENT_FILE = ".deepspeed_env"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepspeedPlan:
    """A run on the hosts of a hostfile."""

    hostfile: Path
    hosts: dict[str, int]
    """Ranks on each host, in the order of the file."""
    config: Path
    overrides: tuple[str, ...]
    backend: str
    master_addr: str
    master_port: int
    node_rank: int | None
    """Set where the command runs on every host by itself (--no_ssh)."""
    launcher_args: str
    env: dict[str, str]
    """Variables for the ranks."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return sum(self.hosts.values())

    @property
    def argv(self) -> tuple[str, ...]:
        """The deepspeed command."""
        words = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(self.hostfile)]
        words += ["--master_addr", self.master_addr, "--master_port", str(self.master_port)]
        if self.node_rank is not None:
            words += ["--no_ssh", "--node_rank", str(self.node_rank)]
        else:
            words += ["--launcher", self.backend, "--force_multi"]
            if self.launcher_args:
                words += [f"--launcher_args={self.launcher_args}"]
        settings = [word for text in self.overrides for word in ("--set", text)]
        ranks = ["--config", str(self.config), *settings]
        if self.node_rank is None and self.backend == "pdsh":
            ranks = [_for_remote_shell(word) for word in ranks]
        return (*words, "--module", "pretrain.train", *ranks)


def add_command(backends: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `headwater launch`."""
    parser = backends.add_parser(
        "deepspeed",
        help="the deepspeed launcher over ssh",
        description="Start a run on the hosts of a hostfile with DeepSpeed's launcher.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument("--hostfile", type=Path, required=True, metavar="FILE", help="NAME slots=N lines")
    parser.add_argument("--launcher", choices=sorted(BACKENDS), default="pdsh", help="how to reach the hosts")
    parser.add_argument("--launcher-args", default="", metavar="WORDS", help="options of pdsh or mpirun")
    parser.add_argument("--master-addr", metavar="HOST", help="where ranks meet (default: the first host)")
    parser.add_argument("--master-port", type=positive_int, metavar="PORT")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the ranks")
    parser.add_argument("--no-ssh", action="store_true", help="this command runs on every host by itself")
    parser.add_argument("--node-rank", type=int, default=-1, metavar="N", help="with --no-ssh: which host")
    parser.add_argument("--dry-run", action="store_true", help="print the command, start nothing")


def launch(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start a run with the deepspeed launcher, or print what would be started; returns the exit code."""
    hosts = read_hostfile(args.hostfile)
    config = load_config(args.config, args.overrides, world_size=sum(hosts.values()))
    check_run_directory(config)
    plan = DeepspeedPlan(
        hostfile=args.hostfile,
        hosts=hosts,
        config=args.config,
        overrides=tuple(args.overrides),
        backend=args.launcher,
        master_addr=args.master_addr or next(iter(hosts)),
        master_port=args.master_port or (29500 if args.dry_run or args.no_ssh else free_port()),
        node_rank=args.node_rank if args.no_ssh else None,
        launcher_args=args.launcher_args,
        env=dict(_variable(text) for text in args.env),
    )
    if args.dry_run:
        print(render(plan), end="")
        return 0
    wrong = [finding.text for finding in data_findings(config) if finding.level == "error"]
    if wrong:
        raise ConfigError(wrong, source=str(args.config))
    _refuse_unreachable(plan)
    run_dir = Path(config.run_dir)
    write_record(run_dir, LaunchRecord(backend="deepspeed", argv=("launch", *argv), directory=os.getcwd()))
    return _run(plan)


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots: `NAME slots=N` lines, as DeepSpeed reads them.

    Raises:
        ConfigError: Naming the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the hostfile: {error.strerror}", source=str(path)) from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _HOST_LINE.fullmatch(line.strip())
        if match is None or match[1] in hosts:
            problem = "is there twice" if match else "write NAME slots=N"
            raise ConfigError(f"line {number}: {line.strip()!r}: {problem}", source=str(path))
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise ConfigError("no hosts; write a line NAME slots=N for each", source=str(path))
    return hosts


def render(plan: DeepspeedPlan) -> str:
    """The launch as a shell script, with what goes into the hostfile and `.deepspeed_env`."""
    lines = [f"# {plan.hostfile}: {plan.world_size} ranks"]
    lines += [f"#   {host} slots={slots}" for host, slots in plan.hosts.items()]
    if plan.env:
        lines.append(f"# {ENVIRONMENT_FILE}: variables of the ranks")
        lines += [f"#   {line}" for line in environment_file(plan).splitlines()]
    return "\n".join([*lines, shlex.join(plan.argv), ""])


def environment_file(plan: DeepspeedPlan) -> str:
    """`.deepspeed_env`: NAME=VALUE lines; the remote shell reads the values."""
    return "".join(f"{name}={value}\n" for name, value in plan.env.items())


def _run(plan: DeepspeedPlan) -> int:
    if plan.node_rank is not None:
        return subprocess.run(plan.argv, env={**os.environ, **plan.env}).returncode
    place = Path(ENVIRONMENT_FILE)
    if plan.env:
        if place.exists() and place.read_text(encoding="utf-8") != environment_file(plan):
            raise ConfigError(f"{place.absolute()} exists with other variables; remove it or give no --env")
        place.write_text(environment_file(plan), encoding="utf-8")
    return subprocess.run(plan.argv).returncode


def _refuse_unreachable(plan: DeepspeedPlan) -> None:
    """Look at once for what DeepSpeed would say late or not at all."""
    problems = []
    if plan.node_rank is None:
        needed = BACKENDS[plan.backend]
        if shutil.which(needed) is None:
            problems.append(
                f"no {needed} on PATH, which --launcher {plan.backend} needs; install it or use --no-ssh"
            )
        else:
            problems += [text for host in plan.hosts if (text := _ssh_problem(host))]
    elif not 0 <= plan.node_rank < len(plan.hosts):
        problems.append(
            f"--node-rank {plan.node_rank}: the hostfile has {len(plan.hosts)} hosts, counted from 0"
        )
    if not problems and _is_taken(plan):
        problems.append(
            f"port {plan.master_port} is taken on {plan.master_addr}: another job? Give another --master-port"
        )
    if problems:
        raise ConfigError(problems)


def _ssh_problem(host: str) -> str | None:
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_SECONDS}", host, "true"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=2 * SSH_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{host} cannot be reached with ssh: no answer within {2 * SSH_SECONDS} s"
    if result.returncode == 0:
        return None
    why = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"{host} cannot be reached with ssh without a password: {why}"


def _is_taken(plan: DeepspeedPlan) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex((_address(plan.master_addr), plan.master_port)) == 0


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ConfigError(f"{host}: {error.strerror or error}; give --master-addr") from error


def _for_remote_shell(word: str) -> str:
    """A word as pdsh must get it: the shell of the other host reads it once more."""
    quoted = shlex.quote(word)
    # DeepSpeed itself puts double quotes around words with blanks, within which a shell still expands.
    if quoted != word and " " in word:
        raise ConfigError(
            f"{word!r}: DeepSpeed's pdsh launcher cannot pass a blank on; write it into the config"
        )
    return quoted


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ConfigError(f"--env {text!r}: write NAME=VALUE")
    if re.search(r'["$`\\\n]', value):
        raise ConfigError(f"--env {text!r}: the remote shell would read the value; set it in a script there")
    return name, value
