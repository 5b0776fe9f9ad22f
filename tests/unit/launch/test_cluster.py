"""The cluster configuration: what loads, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launch.cluster import SlurmClusterConfig, load_cluster, time_limit_seconds
from pretrain.config import ConfigError

REPO = Path(__file__).parents[3]
SMALLEST = {"kind": "slurm", "nodes": 2, "ranks_per_node": 4, "time_limit": "1:00:00"}


def load(tmp_path: Path, **changes: object) -> SlurmClusterConfig:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({**SMALLEST, **changes}))
    cluster = load_cluster(path)
    assert isinstance(cluster, SlurmClusterConfig)
    return cluster


@pytest.mark.parametrize(("nodes", "least", "most"), [(3, 3, 3), ("2-8", 2, 8), ("4", 4, 4)])
def test_nodes_are_a_number_or_a_range(tmp_path, nodes, least, most):
    cluster = load(tmp_path, nodes=nodes)
    assert (cluster.min_nodes, cluster.max_nodes) == (least, most)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("24:00:00", 86400),
        ("1-0", 86400),
        ("1-2:03", 93780),
        ("2-00:00:01", 172801),
    ],
)
def test_a_time_limit_has_the_forms_of_sbatch(limit, seconds):
    assert time_limit_seconds(limit) == seconds


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"partitoin": "x"}, "did you mean 'partition'?"),
        ({"nodes": "8-2"}, "a range such as 2-8"),
        ({"nodes": 0}, "nodes"),
        ({"time_limit": 86400}, r"time_limit: write hours:minutes:seconds"),
        ({"time_limit": "soon"}, "as sbatch takes it"),
        ({"time_limit": "0"}, "as sbatch takes it"),
        ({"signal_lead_seconds": 3600}, "does not fit into time_limit"),
        ({"env": {"A B": 1}}, "A B"),
        ({"ranks_per_node": None}, "ranks_per_node"),
        ({"kind": "pbs"}, "'local' or 'slurm'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, named):
    with pytest.raises(ConfigError, match=named.replace("?", r"\?")):
        load(tmp_path, **changes)


def test_a_time_needs_no_quotes_though_yaml_1_1_would_read_a_number(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("kind: slurm\nnodes: 1\nranks_per_node: 1\ntime_limit: 24:00:00\nenv: {A: 1:20}\n")
    cluster = load_cluster(path)
    assert cluster.time_limit == "24:00:00" and cluster.env == {"A": "1:20"}
    assert load_cluster(path, ["time_limit=12:30"]).time_limit == "12:30"


def test_overrides_apply(tmp_path):
    load(tmp_path)
    cluster = load_cluster(tmp_path / "cluster.yaml", ["nodes=2-3", "env.NCCL_DEBUG=INFO"])
    assert cluster.nodes == "2-3" and cluster.env == {"NCCL_DEBUG": "INFO"}
