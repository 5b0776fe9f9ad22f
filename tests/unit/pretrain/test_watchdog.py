"""What a hang report says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain import watchdog
from pretrain.config import exit_codes
from pretrain.watchdog import Watchdog, describe_hang, living


def beat(
    rank: int, collectives: int, step: int = 7, phase: str = "train", age: float = 0.0
) -> dict[str, Any]:
    return {
        "rank": rank,
        "host": f"node{rank // 2}",
        "pid": 100 + rank,
        "step": step,
        "phase": phase,
        "seconds_in_phase": 61.0,
        "collectives": {"all ranks": collectives, "data-parallel": 4},
        "time": 1000.0 - age,
    }


def test_the_rank_with_the_fewest_collectives_is_the_silent_one() -> None:
    beats = {
        rank: beat(rank, 20 if rank != 2 else 19, phase="train" if rank != 2 else "data") for rank in range(4)
    }
    text = describe_hang(beats, 4, 60)
    assert "silent: rank 2 on node1 (pid 102), step 7, data for 61 s, has not entered the collective" in text
    assert (
        text.count("silent") == 1
        and "rank 3 on node1 (pid 103), step 7, train for 61 s; collectives all ranks 20" in text
    )


def test_a_rank_without_a_sign_of_life_is_the_silent_one() -> None:
    beats = {0: beat(0, 20), 1: beat(1, 20, age=90.0), 2: beat(2, 20)}
    assert living(beats) == [0, 2]
    text = describe_hang(beats, 4, 60)
    assert "silent: rank 1 on node0 (pid 101), step 7, train for 61 s, gives no sign of life" in text
    assert "silent: rank 3 (no heartbeat at all), gives no sign of life" in text


def test_without_a_laggard_nobody_is_accused() -> None:
    assert "no rank is behind" in describe_hang({0: beat(0, 20), 1: beat(1, 20)}, 2, 60)


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.mark.parametrize("broken", ["report", "heartbeat"])
def test_a_job_that_hangs_ends_also_where_nothing_can_be_written(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk, or a file system that went away: the reason for the hang may be just that."""
    if broken == "report":
        (tmp_path / watchdog.REPORT).mkdir()
    else:
        (tmp_path / watchdog.HEARTBEATS / "rank-0.json").mkdir(parents=True)
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(watchdog.os, "_exit", end)
    monkeypatch.setattr(watchdog, "_SETTLE_SECONDS", 0.0)
    dog: Any = Watchdog(tmp_path, SimpleNamespace(rank=0, world_size=1), 60)
    monkeypatch.setattr(dog, "_beat", lambda: None)
    with pytest.raises(Ended):
        dog._end_hung()
    assert codes == [exit_codes.HUNG]
