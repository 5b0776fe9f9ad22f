"""Which variables of srun and mpirun become a rank's place, and when they must not."""

from __future__ import annotations

import pytest

from pretrain.config import ConfigError
from pretrain.config.environment import adopt_place, device_index, first_node

SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[07-08],gpu11",
    "SLURM_JOB_ID": "1234",
}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MEETING = {"MASTER_ADDR": "head", "MASTER_PORT": "29501"}


def adopted(env: dict[str, str]) -> dict[str, str]:
    """What is added or changed."""
    after = dict(env)
    adopt_place(after)
    return {name: value for name, value in after.items() if env.get(name) != value}


def test_a_task_of_srun_meets_the_others_on_the_first_node_of_its_step():
    place = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert adopted(SRUN) == place | {"MASTER_ADDR": "gpu07", "MASTER_PORT": str(20000 + 1234 * 7 % 10000)}
    assert adopted(SRUN | MEETING) == place


def test_a_process_of_mpirun_within_a_slurm_job_is_its_own_rank():
    assert adopted(SRUN | MPIRUN | MEETING) == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


def test_mpirun_must_say_where_the_ranks_meet():
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT is not set: give mpirun `-x"):
        adopted(MPIRUN)


@pytest.mark.parametrize(
    "env",
    [
        {},
        SRUN | {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun, deepspeed, or ours, within a step
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"},
        # A batch script without srun, or a shell of salloc: one process.
        {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")},
    ],
)
def test_other_processes_stay_as_they_are(env):
    assert adopted(env) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("a[003-007,9],b", "a003"),
        ("rack[2,4]n[01-03]", "rack2n01"),
        ("x-[5]-ib,y", "x-5-ib"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first
    with pytest.raises(ConfigError):
        first_node("")


def test_a_rank_has_the_gpu_of_its_number_or_the_only_one_that_it_sees(monkeypatch):
    monkeypatch.setenv("RANK", "11")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [device_index(visible) for visible in (8, 4, 1)] == [3, 3, 0]
    with pytest.raises(ConfigError, match="rank 11 is number 3 .* sees 2 GPUs: start one rank for each GPU"):
        device_index(2)
