"""What a hang report says."""

from __future__ import annotations

from typing import Any

from pretrain.watchdog import describe_hang, living


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
