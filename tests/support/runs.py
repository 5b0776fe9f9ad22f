"""Whole training runs as users start them: processes, a run directory, metrics on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
HEADWATER = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main(sys.argv[1:]))"]
LAUNCHERS = {
    "headwater": [*HEADWATER, "launch", "local", "--nproc", "2"],
    "torchrun": [
        str(Path(sys.executable).parent / "torchrun"),
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "pretrain.train",
    ],
    "deepspeed": [
        str(Path(sys.executable).parent / "deepspeed"),
        "--num_gpus",
        "2",
        "--master_port",
        "29733",
        "--module",
        "pretrain.train",
    ],
    "by hand": [sys.executable, "-m", "pretrain.train"],
    "headwater pretrain": [*HEADWATER, "pretrain"],
}


def environment() -> dict[str, str]:
    """One thread a rank, on the CPU, with this checkout first on the path."""
    bin_directory = str(Path(sys.executable).parent)
    settings = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return os.environ | settings | {"PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}"}


def tiny_run(kind: str, corpus: Path, run_dir: Path, steps: int = 16) -> list[str]:
    """Arguments of a two-layer run with dropout, logged at every step, saved every third."""
    settings = {
        "run_dir": run_dir,
        "data.corpora.0.path": corpus,
        "model.vocab_size": 1000,
        "model.hidden_size": 64,
        "model.ffn_hidden_size": 128,
        "batch.micro_batch_size": 2,
        "batch.global_batch_size": 8,
        "batch.seq_length": 64,
        "schedule.lr_warmup_steps": 2,
        "training.train_steps": steps,
        "training.log_interval": 1,
        "training.eval_interval": 4,
        "training.eval_samples": 8,
        "checkpoint.save_interval": 3,
    }
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["--config", str(REPOSITORY / "configs" / kind / "tiny.yaml"), *overrides]


def start(command: list[str], variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in a session of its own, output captured; in `environment` unless another is given."""
    return subprocess.Popen(
        command,
        env=environment() if variables is None else variables,
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_seconds: float = 240.0) -> tuple[int, str]:
    """Wait for a command; its exit code and output."""
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = _rest(process)
        raise AssertionError(f"did not end within {timeout_seconds} s:\n{output}") from None
    return process.returncode, output


def _rest(process: subprocess.Popen[str]) -> str:
    """What a killed command printed; orphans may keep the pipe open, so this does not wait for its end."""
    try:
        return process.communicate(timeout=5.0)[0]
    except subprocess.TimeoutExpired as error:
        return (error.output or b"").decode(errors="replace")


def run(command: list[str]) -> str:
    """Run a command that must succeed; its output."""
    code, output = finish(start(command))
    assert code == 0, output
    return output


def wait_for_step(
    run_dir: Path,
    step: int,
    timeout_seconds: float = 240.0,
    process: subprocess.Popen[str] | None = None,
) -> None:
    """Wait until a running job has logged a step; fails at once when the process that runs it has ended."""
    deadline = time.monotonic() + timeout_seconds
    while not any(row["step"] >= step for row in rows(run_dir)):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}:\n{_rest(process)}")
        assert time.monotonic() < deadline, f"no step {step} in {run_dir} after {timeout_seconds} s"
        time.sleep(0.05)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The complete rows of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def trajectory(run_dir: Path) -> list[dict[str, float]]:
    """What must repeat exactly: every loss, norm, rate and position, without times."""
    timing = (
        *("step_seconds", "data_wait_seconds", "tokens_per_second"),
        *("model_tflops", "mfu", "save_stall_seconds"),
    )
    return [{name: value for name, value in row.items() if name not in timing} for row in rows(run_dir)]
