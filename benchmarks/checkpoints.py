"""Checkpoints: how long training stands still, how fast they are written, how fast a run finds its data.

    python -m benchmarks.checkpoints

Two ranks (TP 2, ZeRO 1) with 490 MB of weights and moments. In turn, each time: a plain file of the same size
written and flushed by one process (the disk's sequential speed), a save that training waits for, and a save
beside the training. Medians, with the least and the most. Then the data stream goes on from cursors that are
further and further into a run. Needs an idle machine and 2 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from pretrain.config import RunConfig
from pretrain.config.load import parse_section
from pretrain.parity.pool import IMPORTS, RankPool

CHUNK = 16 * 1024 * 1024
CURSORS = (0, 10**3, 10**6, 10**9)
"""Optimizer steps into a run."""


def config(run_dir: str, corpus: str = "none", vocab_size: int = 16000) -> RunConfig:
    """A GPT of 41 M parameters with short steps."""
    sizes = {"num_layers": 4, "hidden_size": 768, "ffn_hidden_size": 3072, "num_attention_heads": 12}
    data = {
        "run_dir": run_dir,
        "model": {"kind": "gpt", "vocab_size": vocab_size, "max_position_embeddings": 64, **sizes},
        "batch": {"micro_batch_size": 1, "global_batch_size": 1, "seq_length": 64},
        "optimizer": {"lr": 1e-4},
        "parallel": {"tensor_model_parallel_size": 2, "zero_stage": 1},
        "precision": "fp32",
        "data": {"corpora": [{"name": "corpus", "path": corpus}]},
        "training": {"train_steps": 10},
    }
    return parse_section(RunConfig, data, "benchmark")


def measure(run_dir: str, repeats: int) -> list[dict[str, float]]:
    """On every rank: a row of seconds for each repeat; the first one, which allocates memory, is left out."""
    import torch.distributed as dist

    from pretrain.checkpoint.snapshot import HostMemory, take_snapshot
    from pretrain.checkpoint.writer import CheckpointWriter
    from pretrain.models import build_model
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.rng import seed_initialization
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from pretrain.parity.batches import micro_batches
    from pretrain.step import train_step

    run, topology = config(run_dir), initialize_topology(2)
    seed_initialization(run.seed)
    model = build_model(run)
    engine = Engine(run, model, build_optimizer(model, run.optimizer), topology)
    memory, writer = HostMemory(), CheckpointWriter(run.checkpoint, "benchmark", lambda: None)
    step = 0

    def train() -> float:
        nonlocal step
        began = time.perf_counter()
        train_step(engine, micro_batches(run, step, 0, 1), lr=1e-4)
        step += 1
        return time.perf_counter() - began

    def save() -> None:
        batch = micro_batches(run, step, 0, 1)[0]
        writer.start(take_snapshot(engine, run, {"step": step}, {}, memory, batch))

    train()
    rows = []
    for _ in range(repeats + 1):
        row = {"step": statistics.median(train() for _ in range(3))}
        _settled_disk()
        began = time.perf_counter()
        save()
        writer.settle()
        row["synchronous save"], row["write"] = time.perf_counter() - began, writer.seconds
        written = writer.take_written()
        row["bytes"] = sum(path.stat().st_size for path in written.iterdir()) if written else 0
        _settled_disk()
        dist.barrier()
        if topology.is_main:
            row["plain file"] = _plain_file(Path(run_dir) / "plain", int(row["bytes"]))
        dist.barrier()
        train()
        began = time.perf_counter()
        save()
        row["stall"] = time.perf_counter() - began
        row["step while writing"] = train()
        writer.settle()
        rows.append(row)
    engine.close()
    return rows[1:]


def _settled_disk() -> None:
    import torch.distributed as dist

    os.sync()
    dist.barrier()


def _plain_file(path: Path, size: int) -> float:
    """Seconds to write and flush a file."""
    content = memoryview(os.urandom(CHUNK))
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for at in range(0, size, CHUNK):
            file.write(content[: min(CHUNK, size - at)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def seek_seconds(corpus: str, steps: int, repeats: int) -> float:
    """From a cursor so many steps into a run to the first batch behind it, median; in milliseconds."""
    from pretrain.data import open_stream

    times, settings = [], config("unused", corpus, vocab_size=1000)
    for _ in range(repeats):
        stream = open_stream(settings, "train", 0, 1)
        state: dict[str, Any] = stream.state_dict()
        state["consumed_samples"] = steps * settings.batch.global_batch_size
        began = time.perf_counter()
        stream.load_state_dict(state)
        next(stream)
        times.append(time.perf_counter() - began)
        stream.close()
    return 1e3 * statistics.median(times)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print markdown; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--corpus", help="of 1,000 pieces, for the seeks; made by default")
    parser.add_argument("--directory", default=".", help="on the disk to measure (default: here)")
    args = parser.parse_args(argv)
    print(describe())
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        log = str(Path(directory) / "ranks.log")
        with RankPool(2, [*IMPORTS, "benchmarks.checkpoints"], log) as pool:
            arguments = {"run_dir": directory, "repeats": args.repeats}
            rows = pool.run("benchmarks.checkpoints:measure", timeout_seconds=500.0, **arguments)[0]
        _print_saves(rows)
        corpus = args.corpus or _corpus(Path(directory))
        print("\n| steps into the run | ms to the first batch |\n|---|---|")
        for steps in CURSORS:
            print(f"| {steps:,} | {seek_seconds(corpus, steps, args.repeats):.1f} |")
    return 0


def _print_saves(rows: Sequence[dict[str, float]]) -> None:
    size = rows[0]["bytes"]
    print(f"\n{len(rows)} repeats, {size / 1e6:.0f} MB\n\n| | median | least to most |\n|---|---|---|")
    for name in ("step", "step while writing", "synchronous save", "write", "plain file", "stall"):
        values = [row[name] for row in rows]
        line = f"| {name} | {statistics.median(values):.3f} s"
        if name in ("write", "plain file"):
            line += f", {size / 1e6 / statistics.median(values):.0f} MB/s"
        print(f"{line} | {min(values):.3f} to {max(values):.3f} |")
    for text, above, below in (
        ("stall / synchronous save", "stall", "synchronous save"),
        ("speed of the write / of the plain file", "plain file", "write"),
    ):
        ratios = [row[above] / row[below] for row in rows]
        print(f"| {text} | {statistics.median(ratios):.1%} | {min(ratios):.1%} to {max(ratios):.1%} |")


def _corpus(directory: Path) -> str:
    from tests.support.corpus import docstring_corpus

    return str(docstring_corpus(directory))


if __name__ == "__main__":
    sys.exit(main())
