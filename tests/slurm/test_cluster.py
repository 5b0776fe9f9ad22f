"""The cluster itself, so that a failure elsewhere is not looked for in the wrong place."""

from __future__ import annotations

import pytest

from tests.slurm.support import Cluster

pytestmark = pytest.mark.slurm


def test_two_nodes_with_names_and_gpus_of_their_own(cluster: Cluster) -> None:
    words = "echo $(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES"
    lines = cluster.run("srun", "--nodes=2", "--gres=gpu:4", "sh", "-c", words).splitlines()
    assert sorted(lines) == ["node1 0 0,1,2,3", "node2 1 0,1,2,3"]
