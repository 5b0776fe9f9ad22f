"""Crash drill: random SIGKILLs of a random rank while it trains, saves or loads, and damage between attempts.

    python -m tests.support.crash_drill --kills 50 --seed 1

Whole pretraining jobs (`pretrain.session`: data stream, background saves, resume) run on forked ranks. A kill
hits one rank at a planted point (`pretrain.faults`) or at a random moment; the others are ended some moments
later, as a launcher does, and the job is started again until it is complete. Then its metrics must be those
of an undisturbed run, bit for bit. After every attempt each checkpoint that verifies must hold exactly what
the undisturbed run saved at that step. Now and then the newest checkpoint is damaged: no attempt may resume
from it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing.connection
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.checkpoint.manifest import list_checkpoints, read_manifest, verify
from pretrain.checkpoint.probe import PROBE
from pretrain.parity.pool import RankPool
from tests.support.runs import trajectory
from tests.support.training import Layout, tiny_config

STEPS, SAVE_INTERVAL = 10, 2
LAYOUTS = {
    "ZeRO 1, TP 2, bf16": (2, Layout(2, 1, "bf16")),
    "ZeRO 3, DP 2": (2, Layout(1, 3)),
    "ZeRO 2, DP 2": (2, Layout(1, 2)),
    "ZeRO 0, TP 2 x DP 2": (4, Layout(2, 0)),
}
WITHOUT_DROPOUT = ("ZeRO 3, DP 2", "ZeRO 0, TP 2 x DP 2")
"""Their probes come from the step after the save."""
# Where a planted kill hits: the points of `pretrain.faults`, and how often a rank passes them at most.
ON_ANY_RANK = {"train": 6, "save.begin": 3, "save.state": 12, "save.share": 3, "load.parameter": 24}
ON_MAIN = {"save.manifest": 3, "save.rename": 3, "save.published": 3, "save.prune": 2}
CLOCK = "any moment"
ATTEMPT_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One planned SIGKILL."""

    where: str
    rank: int
    nth: int
    after_seconds: float
    """For CLOCK."""
    grace_seconds: float
    """Until the other ranks are killed, too."""

    @property
    def fault(self) -> str:
        """For HEADWATER_FAULT."""
        return "" if self.where == CLOCK else f"{self.where} kill rank={self.rank} nth={self.nth}"


def planned(random_: random.Random, world_size: int) -> Kill:
    """A kill at a random point of training, saving or loading, or at a random moment."""
    phase = random_.choice(["train", "save", "save", "load.parameter", CLOCK])
    if phase == "save":
        phase = random_.choice([*(point for point in ON_ANY_RANK if point.startswith("save")), *ON_MAIN])
    rank = 0 if phase in ON_MAIN else random_.randrange(world_size)
    nth = random_.randint(1, (ON_ANY_RANK | ON_MAIN).get(phase, 1))
    return Kill(phase, rank, nth, random_.uniform(0.3, 4.0), random_.choice([0.0, 0.1, 1.0, 3.0]))


def serve(config: dict[str, Any], fault: str) -> int:
    """On every rank: run a job, or go on with it; its exit code."""
    from tests.support.data_chain import attempt

    if fault:
        os.environ["HEADWATER_FAULT"] = fault
    return attempt(config)


def run_attempt(world_size: int, config: dict[str, Any], kill: Kill | None, log: Path) -> bool:
    """One attempt on fresh ranks; True when a rank was killed, False when the job is complete."""
    with RankPool(world_size, ["tests.support.imports"], str(log)) as pool:
        arguments = {"config": config, "fault": kill.fault if kill else ""}
        for pipe in pool._pipes:
            pipe.send(("tests.support.crash_drill:serve", arguments))
        began, waiting = time.monotonic(), dict(enumerate(pool._pipes))
        while waiting:
            elapsed = time.monotonic() - began
            assert elapsed < ATTEMPT_SECONDS, f"no end after {elapsed:.0f} s; see {log}:\n{log.read_text()}"
            if kill and kill.where == CLOCK and elapsed > kill.after_seconds:
                with contextlib.suppress(ProcessLookupError):  # dead already, and not yet reported
                    os.kill(pool._processes[kill.rank].pid, signal.SIGKILL)
            if _any_dead(pool, seconds=0.05):
                assert kill, f"a rank died by itself:\n{log.read_text()}"
                time.sleep(kill.grace_seconds)
                return True
            for rank in [rank for rank, pipe in waiting.items() if pipe.poll()]:
                answer = _answer(waiting.pop(rank))
                if answer != (True, 0):  # of a rank that is dead, or that notices the death before we do
                    assert kill and _any_dead(pool, seconds=10.0), (
                        f"rank {rank}: {answer}:\n{log.read_text()}"
                    )
                    time.sleep(kill.grace_seconds)
                    return True
        return False


def _any_dead(pool: RankPool, seconds: float) -> bool:
    """Whether a rank is known to be dead, within so many seconds.

    The process that forked the ranks reports it, on a busy machine after the pipe of the dead one has closed
    and the others have answered.
    """
    multiprocessing.connection.wait([process.sentinel for process in pool._processes], timeout=seconds)
    return any(not process.is_alive() for process in pool._processes)


def _answer(pipe: multiprocessing.connection.Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        return "gone"


def _state_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("state-*"))


def _truncate(directory: Path) -> None:
    path = _state_files(directory)[0]
    os.truncate(path, path.stat().st_size - 1)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "flipped": lambda directory: _flip(_state_files(directory)[-1]),
    "missing file": lambda directory: _state_files(directory)[-1].unlink(),
    "empty manifest": lambda directory: (directory / "manifest.json").write_text(""),
    "flipped manifest": lambda directory: _flip(directory / "manifest.json"),
}


@dataclass(slots=True)
class Tally:
    """What a drill saw."""

    kills: Counter[str] = field(default_factory=Counter)
    damage: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    checkpoints: int = 0
    """Compared with the undisturbed run's."""
    without_probe: int = 0
    """Of these."""

    def lines(self) -> list[str]:
        """For the terminal."""

        def listed(counter: Counter[str]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))

        return [
            f"{self.kills.total()} kills in {self.attempts} attempts: {listed(self.kills)}",
            f"{self.damage.total()} checkpoints damaged, none resumed: {listed(self.damage)}",
            f"{self.checkpoints} verified checkpoints equal the undisturbed run's, {self.without_probe} "
            "of them but for the probe, which had not come",
            f"{self.runs.total()} runs, losses bit for bit those of the undisturbed one: {listed(self.runs)}",
        ]


class Drill:
    """Runs on one corpus, below one directory."""

    def __init__(self, corpus: Path, root: Path, seed: int) -> None:
        self._corpus, self._root, self._random = corpus, root, random.Random(seed)
        self._undisturbed: dict[str, Path] = {}
        self.tally = Tally()

    def run(self, kills: int, say: Callable[[str], None] = print, layouts: Sequence[str] = ()) -> Tally:
        """Runs in turn on the layouts (all by default) until so many kills have hit."""
        names = list(layouts or LAYOUTS)
        while self.tally.kills.total() < kills:
            name = names[self.tally.runs.total() % len(names)]
            reference = self._reference(name)
            run_dir = self._root / f"run-{self.tally.runs.total()}"
            while self._attempt(name, run_dir, reference, kills, say):
                pass
            course = zip(trajectory(run_dir), trajectory(reference), strict=True)
            other = [(ours, theirs) for ours, theirs in course if ours != theirs]
            assert not other, f"{run_dir} has another course: {other}"
            assert list_checkpoints(run_dir)[-1].name == f"step-{STEPS:08d}"
            self.tally.runs[name] += 1
            say(f"{name}: complete, as if undisturbed; {self.tally.kills.total()} kills so far")
            shutil.rmtree(run_dir)
        return self.tally

    def _attempt(
        self, name: str, run_dir: Path, reference: Path, kills: int, say: Callable[[str], None]
    ) -> bool:
        """One attempt; True when it was killed."""
        world_size, _ = LAYOUTS[name]
        kill = planned(self._random, world_size) if self.tally.kills.total() < kills else None
        damaged = self._damage(run_dir)
        log = self._root / "ranks.log"
        log.write_text("")
        killed = run_attempt(world_size, self._config(name, run_dir), kill, log)
        self.tally.attempts += 1
        resumed = re.search(r"resuming from (\S+) ", log.read_text())
        assert not (resumed and damaged and Path(resumed[1]) == damaged), f"{damaged} was resumed"
        self._compare_checkpoints(name, run_dir, reference)
        if killed:
            assert kill
            self.tally.kills[kill.where] += 1
            step = resumed[1][-2:] if resumed else "0"
            say(f"{name}: from step {step}, rank {kill.rank} killed at {kill.fault or CLOCK}")
        return killed

    def _config(self, name: str, run_dir: Path, keep_last: int = 2) -> dict[str, Any]:
        """With dropout random streams must come back, too."""
        layout, rate = LAYOUTS[name][1], 0.0 if name in WITHOUT_DROPOUT else 0.1
        model = {"hidden_dropout": rate, "attention_dropout": rate}
        config: dict[str, Any] = tiny_config("gpt", layout, str(run_dir), model=model).model_dump(mode="json")
        config["data"] = {"corpora": [{"name": "corpus", "path": str(self._corpus)}]}
        config["checkpoint"] = {"save_interval": SAVE_INTERVAL, "keep_last": keep_last}
        config["training"] = {"train_steps": STEPS, "log_interval": 1}
        return config

    def _reference(self, name: str) -> Path:
        """The undisturbed run of a layout, with all of its checkpoints."""
        if name not in self._undisturbed:
            world_size, _ = LAYOUTS[name]
            run_dir = self._root / f"undisturbed-{len(self._undisturbed)}"
            config = self._config(name, run_dir, keep_last=STEPS)
            assert not run_attempt(world_size, config, None, self._root / "ranks.log")
            self._undisturbed[name] = run_dir
        return self._undisturbed[name]

    def _damage(self, run_dir: Path) -> Path | None:
        """Now and then damage the newest checkpoint, if a good one is left."""
        good = [path for path in list_checkpoints(run_dir) if not verify(path)]
        if len(good) < 2 or self._random.random() > 0.4:
            return None
        kind = self._random.choice(list(DAMAGE))
        DAMAGE[kind](good[-1])
        assert verify(good[-1]), f"{kind}: {good[-1]} still verifies"
        self.tally.damage[kind] += 1
        return good[-1]

    def _compare_checkpoints(self, name: str, run_dir: Path, reference: Path) -> None:
        """What verifies holds what the undisturbed run saved: every byte of state, cursor and counters.

        The probe may be missing where it was to come from a step in which the job broke off.
        """
        for directory in list_checkpoints(run_dir):
            if verify(directory):
                continue
            ours = read_manifest(directory)
            theirs = read_manifest(reference / "checkpoints" / directory.name)
            for manifest in (ours, theirs):
                manifest["files"].pop("config.yaml")  # names its run_dir
            if name in WITHOUT_DROPOUT and "probe_loss" not in ours:
                del theirs["probe_loss"], theirs["files"][PROBE]
                self.tally.without_probe += 1
            assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True), directory
            self.tally.checkpoints += 1


def main() -> int:
    """Run the drill; an assertion fails where something was lost."""
    from tests.support.corpus import docstring_corpus

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--corpus", type=Path, help="made by `headwater data prepare`; Python's docs by default"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        corpus = arguments.corpus or docstring_corpus(root / "corpus")
        drill = Drill(corpus, root, arguments.seed)
        began = time.monotonic()
        tally = drill.run(arguments.kills, lambda text: print(text, flush=True))
        print(f"seed {arguments.seed}, {time.monotonic() - began:.0f} s", *tally.lines(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
