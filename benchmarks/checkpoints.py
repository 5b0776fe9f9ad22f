"""Checkpoints: how long training stands still, how fast they are written, how fast a run finds its data.

    python -m benchmarks.checkpoints

Two ranks (TP 2, ZeRO 1) with 490 MB of weights and moments, no dropout. In turn, each time:

- steps without a save, and a forward pass for the probe loss alone
- a save that training waits for, with the probe's forward pass, and a plain file of that size, written and
  flushed by one process (the disk's sequential speed; plain file / write is the write's speed in units of it)
- a snapshot and the step beside which it is copied, when nothing is written: "stall and slower step" is
  what the snapshot takes and by how much the step is longer than one without
- a whole save beside steps until it is on the disk; the first of them brings the probe. "stall" is the time
  that training stands still: what the snapshot takes and what the update waits for the copy; "longer run" is
  by how much all this takes longer than as many steps without
- the stall of the same save with dropout: the probe's forward pass is part of it

Medians, with the least and the most. Then the data stream goes on from cursors that are further and further
into a run. Needs an idle machine and 2 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
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
STEPS = 5
"""That a step is the mean of."""
SECONDS = (
    *("step", "synchronous save", "write", "plain file", "stall", "stall with dropout", "snapshot", "probe"),
    *("step while copying", "stall and slower step", "step while writing", "longer run"),
)
RATIOS = (
    *(("stall", "synchronous save"), ("stall with dropout", "synchronous save")),
    ("stall and slower step", "synchronous save"),
    *(("longer run", "synchronous save"), ("plain file", "write")),
)


def config(run_dir: str, corpus: str = "none", vocab_size: int = 16000) -> RunConfig:
    """A GPT of 41 M parameters with short steps."""
    sizes = {"num_layers": 4, "hidden_size": 768, "ffn_hidden_size": 3072, "num_attention_heads": 12}
    sizes |= {"hidden_dropout": 0, "attention_dropout": 0}
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


class _Trial:
    """An engine that trains and saves."""

    def __init__(self, run_dir: str) -> None:
        from pretrain.checkpoint.host_copy import HostMemory
        from pretrain.checkpoint.writer import CheckpointWriter
        from pretrain.models import build_model
        from pretrain.optimizer import build_optimizer
        from pretrain.parallel.rng import seed_initialization
        from pretrain.parallel.topology import initialize_topology
        from pretrain.parallel.zero import Engine

        self.run, self.topology = config(run_dir), initialize_topology(2)
        seed_initialization(self.run.seed)
        model = build_model(self.run)
        self.engine = Engine(self.run, model, build_optimizer(model, self.run.optimizer), self.topology)
        self.memory = HostMemory()
        self.writer = CheckpointWriter(self.run.checkpoint, "benchmark", lambda: None)
        self.step = 0

    def train(self, steps: int = 1, snapshot: Any = None) -> float:
        """Seconds of some steps, the first of which brings the probe of a snapshot."""
        from pretrain.parity.batches import micro_batches
        from pretrain.step import train_step

        began = time.perf_counter()
        for _ in range(steps):
            batches = micro_batches(self.run, self.step, 0, 1)
            result = train_step(self.engine, batches, lr=1e-4)
            if snapshot:
                snapshot.probe.offer(batches[0], result.first_loss())
            self.step += 1
        return time.perf_counter() - began

    def snapshot(self, probe_now: bool) -> Any:
        """As a save takes it; the probe is computed now, or comes with the next step."""
        from pretrain.checkpoint.probe import Probe
        from pretrain.checkpoint.snapshot import take_snapshot
        from pretrain.parity.batches import micro_batches

        probe = Probe(micro_batches(self.run, self.step, 0, 1)[0])
        if probe_now:
            probe.settle(self.engine)
        return take_snapshot(self.engine, self.run, {"step": self.step}, {}, self.memory, probe)

    def probe(self) -> float:
        """Seconds of the probe's forward pass."""
        from pretrain.checkpoint.probe import probe_loss
        from pretrain.parity.batches import micro_batches

        began = time.perf_counter()
        probe_loss(self.engine, micro_batches(self.run, self.step, 0, 1)[0])
        return time.perf_counter() - began

    def synchronous(self) -> dict[str, float]:
        """A save that training waits for."""
        _settled_disk()
        began = time.perf_counter()
        self.writer.start(self.snapshot(probe_now=True))
        self.writer.settle()
        row = {"synchronous save": time.perf_counter() - began, "write": self.writer.seconds}
        written = self.writer.take_written()
        row["bytes"] = sum(path.stat().st_size for path in written.iterdir()) if written else 0
        return row

    def copying(self) -> dict[str, float]:
        """What a copy beside a step costs: no file is written."""
        began = time.perf_counter()
        thread = threading.Thread(target=self.snapshot(probe_now=False).state.make)
        thread.start()
        stands = time.perf_counter() - began
        row = {"snapshot": stands, "step while copying": self.train()}
        thread.join()
        return row

    def beside(self, step_seconds: float, probe_now: bool) -> dict[str, float]:
        """What a whole save costs a run, until it is on the disk."""
        self.engine.pending_reads.take_waited_seconds()
        began, steps = time.perf_counter(), 1
        snapshot = self.snapshot(probe_now)
        self.writer.start(snapshot)
        stands = time.perf_counter() - began
        row = {"step while writing": self.train(snapshot=snapshot)}
        row["stall"] = stands + self.engine.pending_reads.take_waited_seconds()
        while _any_rank(self.writer.writing):
            self.train()
            steps += 1
        self.writer.settle()
        return row | {"longer run": time.perf_counter() - began - steps * step_seconds}


def measure(run_dir: str, repeats: int) -> list[dict[str, float]]:
    """On every rank: a row of seconds for each repeat; the first one, which allocates memory, is left out."""
    import torch.distributed as dist

    trial = _Trial(run_dir)
    trial.train()
    rows = []
    for _ in range(repeats + 1):
        row = {"step": trial.train(STEPS) / STEPS, "probe": trial.probe()} | trial.synchronous()
        _settled_disk()
        dist.barrier()
        if trial.topology.is_main:
            row["plain file"] = _plain_file(Path(run_dir) / "plain", int(row["bytes"]))
        dist.barrier()
        trial.train()
        row |= trial.copying()
        row["stall and slower step"] = row["snapshot"] + row["step while copying"] - row["step"]
        trial.train()
        row["stall with dropout"] = trial.beside(row["step"], probe_now=True)["stall"]
        _settled_disk()
        trial.train()
        rows.append(row | trial.beside(row["step"], probe_now=False))
    trial.engine.close()
    return rows[1:]


def _any_rank(mine: bool) -> bool:
    import torch

    from pretrain.parallel.collectives import largest_over_ranks

    return bool(largest_over_ranks([mine], torch.device("cpu"))[0])


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
    for name in SECONDS:
        values = [row[name] for row in rows]
        line = f"| {name} | {statistics.median(values):.3f} s"
        if name in ("write", "plain file"):
            line += f", {size / 1e6 / statistics.median(values):.0f} MB/s"
        print(f"{line} | {min(values):.3f} to {max(values):.3f} |")
    for above, below in RATIOS:
        ratios = [row[above] / row[below] for row in rows]
        text = f"{above} / {below}"
        print(f"| {text} | {statistics.median(ratios):.1%} | {min(ratios):.1%} to {max(ratios):.1%} |")


def _corpus(directory: Path) -> str:
    from tests.support.corpus import docstring_corpus

    return str(docstring_corpus(directory))


if __name__ == "__main__":
    sys.exit(main())
