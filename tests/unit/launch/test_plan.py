"""The plan is pure data: every rank's command and environment."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from launch.plan import LaunchPlan, rank_environment
from pretrain.config.environment import has_accelerator


def make_plan(**changes: object) -> LaunchPlan:
    fields = {
        "run_dir": Path("runs/a b"),
        "config": Path("configs/my run.yaml"),
        "overrides": ("run_dir=runs/$HOME", "seed=1"),
        "python": "/usr/bin/python",
        "hosts": ("node1", "node2"),
        "ranks_per_host": 2,
        "master_port": 29500,
        "env": {"OMP_NUM_THREADS": "4"},
    }
    return LaunchPlan(**{**fields, **changes})


def test_ranks_fill_the_hosts_in_order():
    plan = make_plan()
    assert plan.world_size == 4
    places = [(r.host, r.env["RANK"], r.env["LOCAL_RANK"], r.env["MASTER_ADDR"]) for r in plan.ranks]
    assert places == [
        ("node1", "0", "0", "node1"),
        ("node1", "1", "1", "node1"),
        ("node2", "2", "0", "node1"),
        ("node2", "3", "1", "node1"),
    ]
    assert all(r.env["WORLD_SIZE"] == "4" and r.env["LOCAL_WORLD_SIZE"] == "2" for r in plan.ranks)
    assert all(r.env["OMP_NUM_THREADS"] == "4" for r in plan.ranks)


def test_every_rank_runs_the_same_command():
    plan = make_plan(module="finetune.train")
    assert {r.argv for r in plan.ranks} == {
        ("/usr/bin/python", "-m", "finetune.train", "--config", "configs/my run.yaml")
        + ("--set", "run_dir=runs/$HOME", "--set", "seed=1")
    }


def test_the_shell_line_survives_a_shell():
    rank = make_plan(env={"NCCL_DEBUG": "INFO; true"}).ranks[0]
    words = shlex.split(rank.shell())
    assert "NCCL_DEBUG=INFO; true" in words
    assert words[-len(rank.argv) :] == list(rank.argv)


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_plan().master_port = 1  # type: ignore[misc]


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(8, 2, "4"), (2, 4, "1"), (7, 2, "3")])
def test_threads_are_shared_between_the_ranks(cores, ranks, threads):
    env = rank_environment({}, cores=cores, ranks_per_host=ranks, has_accelerator=True)
    assert env["OMP_NUM_THREADS"] == threads
    assert "DS_ACCELERATOR" not in env


def test_what_the_user_has_set_stays():
    user = {"OMP_NUM_THREADS": "3", "DS_ACCELERATOR": "xpu", "GLIBC_TUNABLES": "glibc.cpu.x=1", "HOME": "/me"}
    env = rank_environment(user, cores=8, ranks_per_host=2, has_accelerator=False)
    del user["HOME"]
    assert env == {**user, "PYTHONUNBUFFERED": "1"}


def test_without_a_gpu_deepspeed_is_told_so():
    env = rank_environment({}, cores=1, ranks_per_host=1, has_accelerator=False)
    assert env["DS_ACCELERATOR"] == "cpu" and env["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert "GLIBC_TUNABLES" not in rank_environment({}, cores=1, ranks_per_host=1, has_accelerator=True)


@pytest.mark.parametrize(
    ("device", "expected"), [("nvidia0", True), ("nvidia3", True), ("kfd", True), ("nvidiactl", False)]
)
def test_a_gpu_is_recognised_by_its_device(tmp_path, device, expected):
    (tmp_path / device).touch()
    assert has_accelerator(tmp_path) is expected
