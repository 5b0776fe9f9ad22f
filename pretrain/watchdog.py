"""Hangs: every rank shows signs of life, and when training stands still each tells where it stands.

A thread writes `heartbeats/rank-N.json` every few seconds: step, phase, and how many collectives the rank has
entered in each group. When the main thread leaves no mark for `training.hang_timeout_seconds`, the rank dumps
the stacks of its threads into its log. The lowest living rank compares the heartbeats and names the rank that
the others wait for; all exit with code 76, upon which a launcher may start the job again.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from pretrain.config import exit_codes
from pretrain.config.run_files import BEAT_SECONDS, HEARTBEATS
from pretrain.parallel.topology import Topology

REPORT = "hang-report.txt"
_SETTLE_SECONDS = 2.0
"""From the moment that a rank finds itself stuck to the comparison, for the others to find it, too."""

Beat = dict[str, Any]


class Watchdog:
    """Knows what the main thread does, from the marks that it leaves with `enter`."""

    def __init__(self, run_dir: Path, topology: Topology, timeout_seconds: int) -> None:
        """Set up; the context manager starts the thread.

        Args:
            run_dir: the run.
            topology: this rank and its groups.
            timeout_seconds: without a mark for so long the rank is stuck; 0 never judges.
        """
        self._run_dir, self._topology, self._timeout = run_dir, topology, timeout_seconds
        self._mark = (0, "start-up", time.monotonic())
        self._armed = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        (self._run_dir / HEARTBEATS).mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(2 * BEAT_SECONDS)

    def enter(self, phase: str, step: int) -> None:
        """Leave a mark: the main thread goes on. The first one arms the watchdog."""
        self._mark = (step, phase, time.monotonic())
        self._armed = True

    def _watch(self) -> None:
        interval = min(BEAT_SECONDS, self._timeout / 4) if self._timeout else BEAT_SECONDS
        while not self._ended.wait(interval):
            try:
                self._beat()
            except OSError as error:  # a full disk must not end the watch
                print(f"headwater: warning: no heartbeat: {error}", file=sys.stderr, flush=True)
            if self._timeout and self._armed and time.monotonic() - self._mark[2] > self._timeout:
                self._end_hung()

    def _beat(self) -> None:
        step, phase, since = self._mark
        beat = {
            "rank": self._topology.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": step,
            "phase": phase,
            "seconds_in_phase": round(time.monotonic() - since, 1),
            "collectives": self._collectives(),
            "time": time.time(),
        }
        path = self._run_dir / HEARTBEATS / f"rank-{self._topology.rank}.json"
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(beat), encoding="utf-8")
        draft.replace(path)

    def _collectives(self) -> dict[str, int]:
        """Collectives that this rank has entered, by group."""
        groups: dict[str, Any] = {
            "all ranks": dist.group.WORLD,
            "tensor-parallel": self._topology.tensor_model_parallel_group,
            "data-parallel": self._topology.data_parallel_group,
        }
        return {name: int(group._get_sequence_number_for_group()) for name, group in groups.items()}

    def _end_hung(self) -> None:
        """Dump stacks, let the lowest living rank report, exit; also where nothing can be written or read."""
        try:
            self._report_hang()
            time.sleep(_SETTLE_SECONDS)
        except Exception as error:  # the end must come
            print(f"headwater: warning: no hang report: {error!r}", file=sys.__stderr__, flush=True)
        finally:
            os._exit(exit_codes.HUNG)

    def _report_hang(self) -> None:
        step, phase, _ = self._mark
        rank, log = self._topology.rank, sys.__stderr__ or sys.stderr
        what = f"rank {rank} has not moved for {self._timeout} s in step {step}, {phase}"
        print(f"headwater: {what}; its threads:", file=log, flush=True)
        faulthandler.dump_traceback(file=log, all_threads=True)
        with suppress(OSError):
            self._beat()
        time.sleep(_SETTLE_SECONDS)
        beats = read_heartbeats(self._run_dir, self._topology.world_size)
        if rank == min(living(beats), default=rank):
            text = describe_hang(beats, self._topology.world_size, self._timeout)
            print(text, end="", file=log, flush=True)
            (self._run_dir / REPORT).write_text(text, encoding="utf-8")


def read_heartbeats(run_dir: Path, world_size: int) -> dict[int, Beat]:
    """The last sign of life of each rank that gave one."""
    beats = {}
    for rank in range(world_size):
        path = run_dir / HEARTBEATS / f"rank-{rank}.json"
        if path.exists():
            beats[rank] = json.loads(path.read_text(encoding="utf-8"))
    return beats


def living(beats: Mapping[int, Beat]) -> list[int]:
    """Ranks whose process still gives signs of life. Clocks of hosts may differ: the newest one is now."""
    now = max((beat["time"] for beat in beats.values()), default=0.0)
    return [rank for rank, beat in beats.items() if now - beat["time"] < 3 * BEAT_SECONDS]


def describe_hang(beats: Mapping[int, Beat], world_size: int, timeout_seconds: int) -> str:
    """A plain report: which rank the others wait for, and where each stands.

    Silent is a rank without a sign of life; without any such, the one that entered the fewest collectives.
    """
    alive = living(beats)
    silent = [rank for rank in range(world_size) if rank not in alive]
    why = "gives no sign of life"
    if not silent and beats:
        entered = {rank: _progress(beats[rank]) for rank in alive}
        fewest = min(entered.values())
        if fewest < max(entered.values()):
            silent = [rank for rank, count in entered.items() if count == fewest]
            why = "has not entered the collective that the others wait in"
    lines = [f"headwater: training has not moved for {timeout_seconds} s"]
    for rank in silent[:8]:
        lines.append(f"  silent: rank {rank}{_where(beats.get(rank))}, {why}")
    if not silent:
        lines.append("  no rank is behind the others: the network, or a file system that all wait for")
    lines += [
        f"  rank {rank}{_where(beats[rank])}; collectives {_counts(beats[rank])}" for rank in list(beats)[:64]
    ]
    lines.append("  the stacks of every living rank are in logs/; exit code 76, the launcher may start again")
    return "\n".join(lines) + "\n"


def _progress(beat: Beat) -> int:
    return sum(beat["collectives"].values())


def _counts(beat: Beat) -> str:
    return ", ".join(f"{name} {count}" for name, count in beat["collectives"].items())


def _where(beat: Beat | None) -> str:
    if beat is None:
        return " (no heartbeat at all)"
    return (
        f" on {beat['host']} (pid {beat['pid']}), step {beat['step']}, {beat['phase']} for "
        f"{beat['seconds_in_phase']:.0f} s"
    )
