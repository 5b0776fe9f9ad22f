"""Which nodes an all-reduce is said to have failed on."""

from __future__ import annotations

from typing import Any

import pytest

from launch.slurm_network import blame, read_answers

HOSTS = ("a", "b", "c")
READY: dict[str, Any] = {"state": "ready"}
RIGHT: dict[str, Any] = {"state": "done", "problem": None, "seconds": 0.1, "waited": False}
TIMED_OUT = RIGHT | {"problem": "timed out", "waited": True}
NO_DEVICE = RIGHT | {"problem": "no interface ib0"}


def blamed(*answers: dict[str, Any] | None, per_node: int = 1) -> dict[str, str]:
    said = {rank: answer for rank, answer in enumerate(answers) if answer is not None}
    return blame(HOSTS, per_node, said, 30.0)


def test_a_right_sum_blames_nobody():
    assert blamed(RIGHT, RIGHT, RIGHT) == {}


@pytest.mark.parametrize(
    ("answers", "nodes", "words"),
    [
        ((READY, None, TIMED_OUT), ["b"], "all-reduce within 30 s: rank 1: is silent"),
        ((TIMED_OUT, READY, NO_DEVICE), ["c"], "rank 2: no interface ib0"),
        ((None, READY, NO_DEVICE), ["c"], "rank 2: no interface ib0"),  # the first was ended early
        ((TIMED_OUT, RIGHT, RIGHT), ["a"], "rank 0: timed out"),
        ((READY, READY, READY), ["a", "b", "c"], "did not end; is the network interface right"),
        ((None, None, None), ["a", "b", "c"], "is silent"),
    ],
)
def test_the_likeliest_cause_is_named(answers, nodes, words):
    found = blamed(*answers)
    assert list(found) == nodes and words in found[nodes[-1]]


def test_with_several_ranks_a_node_is_named_once():
    found = blamed(RIGHT, RIGHT, None, None, RIGHT, RIGHT, per_node=2)
    assert list(found) == ["b"] and "rank 2" in found["b"]


def test_answers_are_found_in_the_output_of_a_step():
    line = 'HEADWATER-RANK {"rank": 1, "state": "done", "problem": "got {}"}'
    assert [answer["problem"] for answer in read_answers(f"3: {line}{line}")] == ["got {}"] * 2
    assert read_answers("Loading cuda") == read_answers(line[:30]) == []
