"""Finetuning next to transformers' Trainer, and generation with and without the cache.

    python -m benchmarks.finetune_speed

`--hf` is a BERT in Hugging Face's format, by default all-MiniLM-L6-v2, which is downloaded; the task is to
tell which package a docstring of this Python is from. Both have the same rows, batch size, learning rates,
weight decay, clipping, dropout and fp32, and take turns; seconds are those of the training loop after
start-up, with one checkpoint (weights and optimizer) at its end. Needs accelerate. Five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benchmarks.finetuning.minilm import fetch
from benchmarks.machine import describe
from data_tools.errors import DataError
from data_tools.python_corpus import build_python_corpus

RESULT = "=== result"
"""What a worker prints before its answer."""

SEEDS = (1, 2, 3)
TRAINERS = ("headwater", "trainer")
SETTINGS: dict[str, Any] = {"lr": 2e-4, "batch": 16, "steps": 30, "warmup": 3, "seq_length": 64, "rows": 480}


class Clock:
    """Seconds, and those of all threads of this process on a processor, since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Both, rounded."""
        now = time.perf_counter(), time.process_time()
        return {
            name: round(end - begin, 2)
            for name, begin, end in zip(("seconds", "cpu_seconds"), self._began, now, strict=True)
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hf", type=Path, help="another BERT")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/finetune-speed"), help="directory of the runs (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=("train", "generate"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only != "generate":
        try:
            print(train_all(args))
        except (OSError, DataError) as error:
            raise SystemExit(str(error)) from None
    if args.only != "train":
        print(worker("benchmarks.finetuning.generation", {"threads": args.threads}))
    print(f"\n{describe()}, {args.threads} threads")
    return 0


def train_all(args: argparse.Namespace) -> str:
    """Six runs in turn; the table."""
    model = args.hf or fetch(args.out)
    build_python_corpus(args.out / "python")
    tables = args.out / "python" / "classification"
    rows = (tables / "train.jsonl").read_text(encoding="utf-8").splitlines()
    train = args.out / "train.jsonl"
    train.write_text("\n".join(rows[: SETTINGS["rows"]]) + "\n", encoding="utf-8")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TRAINERS}
    for seed in SEEDS:
        for name in TRAINERS:
            wanted = SETTINGS | {
                "hf": str(model),
                "out": str(args.out),
                "train": str(train),
                "validation": str(tables / "validation.jsonl"),
                "seed": seed,
                "threads": args.threads,
            }
            found[name].append(json.loads(worker(f"benchmarks.finetuning.{name}", wanted)))
            print(f"{name}, seed {seed}: {found[name][-1]}", flush=True)
    lines = ["| | accuracy, % | seconds, median (least, most) | CPU seconds |", "|---|---|---|---|"]
    for name, results in found.items():
        accuracy = [100 * result["accuracy"] for result in results]
        times = []
        for clock in ("seconds", "cpu_seconds"):
            values = [result[clock] for result in results]
            times.append(f"{median(values):.1f} ({min(values):.1f}, {max(values):.1f})")
        lines.append(f"| {name} | {mean(accuracy):.1f} ± {stdev(accuracy):.1f} | {' | '.join(times)} |")
    return "\n".join(lines)


def worker(module: str, settings: dict[str, Any]) -> str:
    """What a process of its own prints behind RESULT."""
    variables = os.environ | {"OMP_NUM_THREADS": str(settings["threads"])}
    command = [sys.executable, "-m", module, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        raise SystemExit(f"{module} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout.split(RESULT)[-1].strip()


if __name__ == "__main__":
    sys.exit(main())
