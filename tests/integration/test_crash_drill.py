"""The first kills of the crash drill; `python -m tests.support.crash_drill` does fifty."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain.data.audit import audit_run
from pretrain.data.trace import trace_step
from tests.support import crash_drill
from tests.support.crash_drill import Drill, Kill, run_attempt
from tests.support.runs import rows
from tests.support.training import Layout, tiny_config

SEED = 16
"""One kill hits a save, one a load."""


@pytest.mark.distributed
@pytest.mark.slow
def test_a_killed_and_damaged_run_ends_as_if_undisturbed(corpus: Path, tmp_path: Path) -> None:
    tally = Drill(corpus, tmp_path, seed=SEED).run(kills=2, layouts=["ZeRO 1, TP 2, bf16"])
    assert tally.kills.total() == 2 and tally.checkpoints >= 3


def test_a_death_that_is_reported_late_ends_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pipes have spoken, and the dead rank still counts as alive: the job is not complete for that."""
    silent, reported = os.eventfd(0), os.eventfd(0)
    asked: list[int] = []

    def is_alive() -> bool:
        os.eventfd_write(reported, 1)
        asked.append(1)
        return len(asked) == 1

    def nothing_comes() -> None:
        raise EOFError

    pipes = [
        SimpleNamespace(send=print, poll=lambda: True, recv=lambda: (False, "Connection reset by peer")),
        SimpleNamespace(send=print, poll=lambda: True, recv=nothing_comes),
    ]
    processes = [
        SimpleNamespace(sentinel=silent, is_alive=lambda: True),
        SimpleNamespace(sentinel=reported, is_alive=is_alive),
    ]
    pool = SimpleNamespace(_pipes=pipes, _processes=processes)
    monkeypatch.setattr(crash_drill, "RankPool", lambda *_: contextlib.nullcontext(pool))
    kill = Kill("train", rank=1, nth=1, after_seconds=0.0, grace_seconds=0.0)
    (log := tmp_path / "ranks.log").touch()
    assert run_attempt(2, {}, kill, log)
    os.close(silent), os.close(reported)


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in rows(run_dir)]


@pytest.mark.distributed
@pytest.mark.slow
def test_fewer_ranks_go_on_with_the_same_global_batches(corpus: Path, tmp_path: Path) -> None:
    """Four ranks, one is killed in step 6, and two go on."""
    whole, elastic, log = tmp_path / "whole", tmp_path / "elastic", tmp_path / "ranks.log"
    config = tiny_config("gpt", Layout(1, 2), "unused", training={"train_steps": 8, "log_interval": 1})
    settings = config.model_dump(mode="json")
    settings["data"] = {"corpora": [{"name": "corpus", "path": str(corpus)}]}
    settings["checkpoint"] = {"save_interval": 2}
    assert not run_attempt(4, settings | {"run_dir": str(whole)}, None, log)
    kill = Kill("train", rank=3, nth=6, after_seconds=0.0, grace_seconds=0.5)
    assert run_attempt(4, settings | {"run_dir": str(elastic)}, kill, log)
    assert not run_attempt(2, settings | {"run_dir": str(elastic)}, None, log)
    assert "TP 1 x DP 4, ZeRO 2, fp32 -> TP 1 x DP 2, ZeRO 2, fp32; fingerprints of " in log.read_text()
    assert losses(elastic) == pytest.approx(losses(whole), rel=1e-5)
    assert audit_run(elastic).problems == []
    for step in range(1, 9):
        ours, theirs = (
            sorted((sample.number, sample.texts) for sample in trace_step(run_dir, step))
            for run_dir in (elastic, whole)
        )
        assert ours == theirs and len(ours) == 8
