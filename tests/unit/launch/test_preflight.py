"""Which nodes are left out, and with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launch import node_facts
from launch.preflight import NodeFacts, Wanted, bad_nodes, read_line

WANTED = Wanted(
    gpus=4, min_memory_gb=10, min_disk_gb=5, run_dir="/run", scratch_paths=("/scratch",), min_scratch_gb=2
)


def node(host: str, **changes: Any) -> NodeFacts:
    facts = {
        "host": host,
        "versions": {"python": "3.11.7", "torch": "2.8.0"},
        "gpus": 4,
        "memory_gb": 100.0,
        "disk_gb": {"/run": 50.0, "/scratch": 3.0},
        "run_dir": None,
        "reach": None,
        "time": 1000.0,
    }
    return NodeFacts(facts | changes, received=1000.5)


def problems(*nodes: NodeFacts, hosts: tuple[str, ...] = ("a", "b", "c")) -> dict[str, str]:
    return bad_nodes(hosts, nodes, WANTED, timeout=50.0)


def test_good_nodes_pass():
    assert problems(node("a"), node("b"), node("c")) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"versions": {"python": "3.11.7", "torch": "2.7.1"}}, "torch 2.7.1, other nodes have 2.8.0"),
        ({"versions": {"python": "3.11.7"}}, "torch is not installed, other nodes have 2.8.0"),
        ({"gpus": 3}, "3 GPUs, 4 are wanted"),
        ({"memory_gb": 9.5}, "9.5 GB of memory free, 10 are wanted"),
        ({"disk_gb": {"/run": 4.0, "/scratch": 3.0}}, "4 GB free at /run, 5 are wanted"),
        ({"disk_gb": {"/run": 50.0, "/scratch": None}}, "/scratch is not there"),
        ({"disk_gb": {"/run": 50.0, "/scratch": 1.0}}, "1 GB free at /scratch, 2 are wanted"),
        ({"run_dir": "stale mount?"}, "stale mount?"),
        ({"reach": "cannot reach a:20000: timed out"}, "cannot reach a:20000: timed out"),
        ({"time": 900.0}, "its clock is 100 s behind"),
        ({"time": 1100.0}, "its clock is 100 s ahead"),
    ],
)
def test_what_is_wrong_with_a_node_is_said(changes, words):
    found = problems(node("a"), node("b", **changes), node("c"))
    assert list(found) == ["b"] and words in found["b"]


def test_a_silent_node_is_bad():
    assert "no answer within 50 s" in problems(node("a"), node("c"))["b"]


def test_all_that_is_wrong_is_said_at_once():
    assert problems(node("a"), node("b", gpus=0, reach="no way"), node("c"))["b"].count(";") == 1


def test_between_two_nodes_the_first_has_the_right_version():
    other = {"python": "3.11.9", "torch": "2.8.0"}
    assert list(problems(node("a"), node("b", versions=other), hosts=("a", "b"))) == ["b"]


def test_the_majority_has_the_right_version():
    other = {"python": "3.11.9", "torch": "2.8.0"}
    assert list(problems(node("a", versions=other), node("b"), node("c"))) == ["a"]


def test_facts_are_found_in_the_output_of_a_step(tmp_path, capfd):
    (tmp_path / "token").write_text("")
    node_facts.main(
        ["--run-dir", str(tmp_path), "--token", "token", "--reach", "127.0.0.1:1", "--scratch", "/absent"]
    )
    line = capfd.readouterr().out.strip()
    (answer,) = read_line(f"0: {line}", received=1.0)  # srun --label
    assert len(read_line(line + line, received=1.0)) == 2
    assert read_line("Loading cuda/12", received=1.0) == read_line(line[:40], received=1.0) == []
    assert "Connection refused" in answer.facts["reach"]
    assert answer.facts["run_dir"] is None and answer.facts["disk_gb"]["/absent"] is None
    assert {"python", "pydantic", "headwater sources"} <= answer.facts["versions"].keys()
    assert json.dumps(answer.facts)


def test_another_directory_under_the_same_name_is_noticed(tmp_path):
    assert "stale mount" in str(node_facts.run_directory_problem(tmp_path, "token"))
    assert "No such file" in str(node_facts.run_directory_problem(tmp_path / "absent", "token"))
    (tmp_path / "token").write_text("")
    assert node_facts.run_directory_problem(tmp_path, "token") is None
    assert [path.name for path in tmp_path.iterdir()] == ["token"]
