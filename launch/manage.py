"""`headwater launch status|logs|stop|resume RUN_DIR`: look after a run, wherever it was launched."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch import attempts, slurm_control
from launch.output import tail
from launch.record import FILE_NAME, LaunchRecord, read_record
from pretrain.config import ConfigError
from pretrain.config.arguments import non_negative_int, positive_int
from pretrain.config.exit_codes import OK
from pretrain.config.run_files import BEAT_SECONDS, HEARTBEATS, OWNER, STOP_FILE

FOLLOW_SECONDS = 0.5
SHOWN_ATTEMPTS = 10
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING")


def add_commands(backends: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `headwater launch`."""
    texts = {
        "status": "how far a run is, over all its attempts",
        "logs": "the end of a run's log",
        "stop": "save a checkpoint and let the run rest",
        "resume": "launch a run again as before",
    }
    for name, text in texts.items():
        parser = backends.add_parser(name, help=text, description=f"{text.capitalize()}.", allow_abbrev=False)
        parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run_dir of its config")
        if name == "logs":
            parser.add_argument(
                "--rank", type=non_negative_int, metavar="N", help="a rank's log (default: 0)"
            )
            parser.add_argument("--job", action="store_true", help="the job's own log: nodes, requeues")
            parser.add_argument(
                "-n", dest="lines", type=positive_int, default=20, metavar="N", help="lines at the end"
            )
            parser.add_argument("-f", dest="follow", action="store_true", help="go on as it grows")


def main(args: argparse.Namespace, launch: Callable[[Sequence[str]], int]) -> int:
    """Run one of the commands; returns the exit code.

    Args:
        args: Its parsed words.
        launch: Runs `headwater launch` with the words that follow it.
    """
    if args.backend == "stop" and not (args.run_dir / FILE_NAME).exists() and _is_alive(args.run_dir):
        return _ask_by_file(args.run_dir)  # started with torchrun or deepspeed, not with us
    record = read_record(args.run_dir)
    if args.backend == "status":
        print(status(args.run_dir, record))
        return OK
    if args.backend == "logs":
        return _logs(args, record)
    if args.backend == "stop":
        return _stop(args.run_dir, record)
    return _resume(args.run_dir, record, launch)


def status(run_dir: Path, record: LaunchRecord) -> str:
    """A few lines: state, step, attempts, checkpoint."""
    chain = attempts.read(run_dir / "logs")
    lines = [f"{run_dir}: {_state(run_dir, record, chain)}", f"  step        {_progress(run_dir)}"]
    lines.append(f"  checkpoint  {attempts.newest_checkpoint(run_dir) or 'none yet'}")
    if len(chain) > SHOWN_ATTEMPTS:
        lines.append(
            f"  {len(chain) - SHOWN_ATTEMPTS} earlier attempts: {run_dir / 'logs' / attempts.FILE_NAME}"
        )
    lines += [
        f"  attempt {one['attempt']:<3} {_describe(one, one is chain[-1])}" for one in chain[-SHOWN_ATTEMPTS:]
    ]
    return "\n".join(lines)


def _state(run_dir: Path, record: LaunchRecord, chain: list[dict[str, Any]]) -> str:
    if record.job_id is None:
        running = _is_alive(run_dir) or (bool(chain) and _local_launcher(run_dir, chain[-1]) is not None)
        return f"{'running' if running else 'not running'}, launched with {record.backend}"
    try:
        fields = slurm_control.job_fields(record.job_id)
    except slurm_control.SlurmError as error:
        return f"SLURM job {record.job_id}: {error}"
    if not fields:
        return f"SLURM job {record.job_id} is no longer known to the controller"
    state = fields["JobState"].lower()
    if (reason := fields.get("Reason", "None")) != "None":
        state += f" ({reason})"
    if fields["JobState"] == "RUNNING":
        state += f" on {fields['NodeList']}, time limit at {fields['EndTime']}"
    return f"SLURM job {record.job_id} is {state}"


def _progress(run_dir: Path) -> str:
    last = last_step(run_dir)
    if last is None:
        return "none yet"
    total = f" of {_train_steps(run_dir)}"
    return f"{last['step']}{total}, loss {last['loss']:.4f}, {last['step_seconds']:.3g} s a step"


def last_step(run_dir: Path) -> dict[str, Any] | None:
    """The last training row of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    for line in reversed(path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if row.get("loss") is not None and "step_seconds" in row:
            return dict(row)
    return None


def _train_steps(run_dir: Path) -> int:
    from pretrain.config.load import read_yaml

    return int(read_yaml(run_dir / "config.yaml")["training"]["train_steps"])


def _describe(attempt: dict[str, Any], latest: bool) -> str:
    place = ", ".join(attempt.get("nodes", [attempt.get("host", "?")]))
    text = f"{attempt.get('started', '?')} on {place}: "
    if "exit_code" not in attempt:
        return text + ("no end recorded (running, or lost)" if latest else "lost: its first node, or a kill")
    reason = f", {attempt['reason']}" if "reason" in attempt else ""
    if "next_job" in attempt:
        reason += f"; job {attempt['next_job']} goes on"
    return f"{text}exit code {attempt['exit_code']} after {attempt['seconds']:.0f} s{reason}"


def _log_path(args: argparse.Namespace, record: LaunchRecord) -> Path:
    logs: Path = args.run_dir / "logs"
    if not args.job:
        return logs / f"rank-{args.rank or 0}.log"
    if record.job_id is None:
        raise ConfigError("--job: only SLURM jobs have a log of their own")
    here = Path(record.script).parent / "logs" if record.script else logs
    return here / f"slurm-{record.job_id}.log"


def _logs(args: argparse.Namespace, record: LaunchRecord) -> int:
    path = _log_path(args, record)
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist yet; `headwater launch status {args.run_dir}` tells the state"
        )
    print("\n".join(tail(path, max_lines=args.lines)), flush=True)
    if args.follow:
        with suppress(KeyboardInterrupt):  # how one stops looking
            _follow(path)
    return OK


def _follow(path: Path) -> None:
    """Print what is added to a file, until interrupted."""
    with open(path, encoding="utf-8", errors="replace") as file:
        file.seek(0, os.SEEK_END)
        while True:
            if text := file.read():
                print(text, end="", flush=True)
            else:
                time.sleep(FOLLOW_SECONDS)


def _stop(run_dir: Path, record: LaunchRecord) -> int:
    if record.job_id is not None:
        return _stop_job(run_dir, record.job_id)
    chain = attempts.read(run_dir / "logs")
    launcher = _local_launcher(run_dir, chain[-1]) if chain else None
    if _is_alive(run_dir) and (launcher is None or record.backend == "deepspeed"):
        return _ask_by_file(run_dir)
    if launcher is None:
        where = f" on {chain[-1]['host']}" if chain and chain[-1]["host"] != socket.gethostname() else ""
        print(f"{run_dir}: nothing runs on this machine{f'; its last attempt was{where}' if where else ''}")
        return OK
    os.kill(launcher, signal.SIGTERM)
    print(f"asked process {launcher} to save and stop; watch: headwater launch logs -f {run_dir}")
    return OK


def _is_alive(run_dir: Path) -> bool:
    """Whether a rank, on any host, has given a sign of life just now and its attempt has not ended."""
    try:
        owner = json.loads((run_dir / OWNER).read_text(encoding="utf-8"))
        age = time.time() - (run_dir / HEARTBEATS / "rank-0.json").stat().st_mtime
    except (FileNotFoundError, ValueError):
        return False
    return "ended" not in owner and age < 6 * BEAT_SECONDS


def _ask_by_file(run_dir: Path) -> int:
    (run_dir / STOP_FILE).touch()
    print(f"asked the ranks to save and stop; watch: headwater launch logs -f {run_dir}")
    return OK


def _stop_job(run_dir: Path, job: str) -> int:
    """Ask what runs, and remove what waits: of an array that may be both."""
    states = [fields["JobState"] for fields in slurm_control.all_fields(job)]
    if any(state in QUEUED for state in states):
        slurm_control.cancel_queued(job)
        print(f"removed job {job} from the queue; the run's checkpoints stay")
    if "RUNNING" in states:
        slurm_control.send(job, "USR2")
        print(f"asked job {job} to save and stop; watch: headwater launch status {run_dir}")
    elif not any(state in QUEUED for state in states):
        print(f"{run_dir}: job {job} does not run ({(states or ['no longer known'])[0].lower()})")
    return OK


def _local_launcher(run_dir: Path, attempt: dict[str, Any]) -> int | None:
    """Process of the launcher of an attempt, if it runs on this machine."""
    if "exit_code" in attempt or attempt.get("host") != socket.gethostname() or "launcher_pid" not in attempt:
        return None
    try:
        command = Path(f"/proc/{attempt['launcher_pid']}/cmdline").read_bytes()
    except OSError:
        return None
    # Numbers of processes come again: this one must be a launch of the same config, or of this directory.
    config = attempt["argv"][attempt["argv"].index("--config") + 1]
    same = config.encode() in command or (b"\0resume\0" in command and run_dir.name.encode() in command)
    return int(attempt["launcher_pid"]) if b"launch" in command and same else None


def _resume(run_dir: Path, record: LaunchRecord, launch: Callable[[Sequence[str]], int]) -> int:
    if record.job_id is not None and "_" in record.job_id:
        raise ConfigError(
            f"{run_dir} is one run of a job array; resume the array: headwater launch resume {run_dir.parent}"
        )
    words = " ".join(record.argv)
    print(f"headwater {words}", file=sys.stderr, flush=True)
    os.chdir(record.directory)
    return launch(record.argv[1:])
