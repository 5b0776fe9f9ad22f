"""Seconds from the start of a process to its first training step, and what of them imports take.

python -m benchmarks.training.startup
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from benchmarks.machine import describe
from benchmarks.training.processes import Candidate

IMPORTS = {
    "torch": "import torch",
    "torch, deepspeed, megatron-core": "import torch, deepspeed, megatron.core",
}


def main(repeats: int = 5) -> None:
    """Measure in turn and print a table."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    ready, done = "first step of the GPT work begins", "first step of the GPT work done"
    seconds |= {ready: [], done: []}
    for _ in range(repeats):
        for name, statement in IMPORTS.items():
            begin = time.perf_counter()
            environment = dict(os.environ, DS_ACCELERATOR="cpu")
            subprocess.run(
                [sys.executable, "-c", statement], check=True, capture_output=True, env=environment
            )
            seconds[name].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        with Candidate("gpt", "headwater") as candidate:
            candidate.wait_until_ready()
            seconds[ready].append(time.perf_counter() - begin)
            candidate.round(1)
            seconds[done].append(time.perf_counter() - begin)
    print(
        f"Start-up, {describe()}, {repeats} repeats\n\n| process | s, median | least to most |\n|---|---|---|"
    )
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} to {max(values):.1f} |")


if __name__ == "__main__":
    main()
