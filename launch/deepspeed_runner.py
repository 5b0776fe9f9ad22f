"""`headwater launch deepspeed`: checks the hosts, starts DeepSpeed's launcher, keeps the record."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from launch import attempts
from launch.deepspeed_hosts import problems_of_hosts
from launch.deepspeed_plan import (
    BACKENDS,
    DeepspeedPlan,
    backend_problems,
    environment_text,
    read_hostfile,
    render,
    variable,
)
from launch.jobs import load_job
from launch.machine import free_port
from launch.record import LaunchRecord, write_record
from pretrain.config import ConfigError
from pretrain.config.arguments import add_run_arguments, positive_int
from pretrain.config.identity import check_run_directory, lock_run_directory
from pretrain.config.run_files import STOP_FILE

EXAMPLES = """examples:
  headwater launch deepspeed --hostfile hosts --config configs/gpt/1b3.yaml --env NCCL_DEBUG=WARN
  headwater launch deepspeed --hostfile hosts --config configs/gpt/1b3.yaml --launcher slurm
  headwater launch deepspeed --hostfile hosts --config configs/gpt/1b3.yaml --no-ssh --node-rank 1

Ctrl-C, SIGTERM and `headwater launch stop` save and stop (exit code 75); a second signal ends the ranks at
once. The same command resumes from the newest checkpoint.
"""


def add_command(backends: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `headwater launch`."""
    parser = backends.add_parser(
        "deepspeed",
        help="the deepspeed launcher on the hosts of a hostfile",
        description="Start a run on the hosts of a hostfile with DeepSpeed's launcher.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument("--hostfile", type=Path, required=True, metavar="FILE", help="NAME slots=N lines")
    parser.add_argument(
        "--launcher",
        choices=sorted(BACKENDS),
        default="pdsh",
        help="how to reach the hosts: pdsh and openmpi by ssh, slurm by srun within an allocation",
    )
    parser.add_argument(
        "--launcher-args", default="", metavar="WORDS", help="options of pdsh, mpirun or srun"
    )
    parser.add_argument("--master-addr", metavar="HOST", help="where ranks meet (default: the first host)")
    parser.add_argument("--master-port", type=positive_int, metavar="PORT")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the ranks")
    parser.add_argument("--no-ssh", action="store_true", help="this command runs on every host by itself")
    parser.add_argument("--node-rank", type=int, default=-1, metavar="N", help="with --no-ssh: which host")
    parser.add_argument("--dry-run", action="store_true", help="print the command, start nothing")


def launch(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start a run with the deepspeed launcher, or print what would be started; returns the exit code."""
    hosts = read_hostfile(args.hostfile)
    job = load_job(args.config, args.overrides, sum(hosts.values()))
    check_run_directory(job.config)
    plan = DeepspeedPlan(
        hostfile=args.hostfile,
        hosts=hosts,
        run_dir=Path(job.config.run_dir),
        config=args.config,
        overrides=tuple(args.overrides),
        backend=args.launcher,
        master_addr=args.master_addr or next(iter(hosts)),
        master_port=args.master_port or (29500 if args.dry_run or args.no_ssh else free_port()),
        node_rank=args.node_rank if args.no_ssh else None,
        launcher_args=args.launcher_args,
        env=dict(variable(text) for text in args.env) | _meeting_point(args),
        module=job.module,
    )
    if args.dry_run:
        print(render(plan), end="")
        return 0
    if wrong := job.data_problems():
        raise ConfigError(wrong, source=str(args.config))
    if problems := backend_problems(plan):
        raise ConfigError(problems)
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    if problems := problems_of_hosts(plan):
        raise ConfigError(problems)
    if plan.node_rank:  # the command on the first host keeps the record
        return _run(plan)
    lock_run_directory(
        job.config.run_dir
    ).close()  # refuse now, before the record of a running job is touched
    write_record(
        plan.run_dir, LaunchRecord(backend="deepspeed", argv=("launch", *argv), directory=os.getcwd())
    )
    began = time.monotonic()
    words = ["--config", str(args.config)]
    attempt = attempts.begin(plan.run_dir / "logs", launcher_pid=os.getpid(), nodes=list(hosts), argv=words)
    code = _run(plan)
    attempt.record_end(code, time.monotonic() - began)
    return code


def _meeting_point(args: argparse.Namespace) -> dict[str, str]:
    """DeepSpeed tells ranks under srun no place; they find one, unless the user has given it."""
    if args.launcher != "slurm":
        return {}
    given = {"MASTER_ADDR": args.master_addr, "MASTER_PORT": args.master_port}
    return {name: str(value) for name, value in given.items() if value}


def _run(plan: DeepspeedPlan) -> int:
    """Run the deepspeed launcher; its exit code, 128 + n where it ended by signal n."""
    if plan.needs_environment_file:
        plan.environment_file.write_text(environment_text(plan, _own_environment_files()), encoding="utf-8")
    stop_file = plan.run_dir / STOP_FILE
    stop_file.unlink(missing_ok=True)  # of an attempt that ended before it looked
    env = {**os.environ, **plan.launcher_env}
    process = subprocess.Popen(plan.argv, env=env, start_new_session=True)
    with _saving_on_signals(process, stop_file):
        code = process.wait()
    stop_file.unlink(missing_ok=True)
    return 128 - code if code < 0 else code


def _own_environment_files() -> list[str]:
    """What the user has for DeepSpeed in his home and here, in the order in which it reads them."""
    paths = [Path.home() / ".deepspeed_env", Path(".deepspeed_env")]
    return [path.read_text(encoding="utf-8") for path in paths if path.is_file()]


@contextmanager
def _saving_on_signals(process: subprocess.Popen[bytes], stop_file: Path) -> Iterator[None]:
    """Turn the first signal into a request to save, as DeepSpeed's launcher would kill the ranks at once."""
    asked = threading.Event()

    def note(number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            os.killpg(process.pid, signal.SIGTERM)  # srun and mpirun are not told by DeepSpeed
            return
        asked.set()
        stop_file.touch()
        text = "headwater: asked the ranks to save and stop; a second signal ends them at once\n"
        os.write(2, text.encode())

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
