"""Every configuration that is shipped loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.clean import load_clean_config
from finetune.config import load_finetune_config
from launch.cluster import load_cluster
from pretrain.config import JobConfig, load_config
from pretrain.config.load import read_yaml

REPO = Path(__file__).parents[2]
DATA_CONFIGS = sorted((REPO / "configs" / "data").glob("*.yaml"))
"""Cleaning configurations of the data tools, not runs."""
CLUSTER_CONFIGS = sorted((REPO / "configs" / "cluster").glob("*.yaml"))
"""Where runs go."""
CONFIGS = sorted(set((REPO / "configs").rglob("*.yaml")) - set(DATA_CONFIGS) - set(CLUSTER_CONFIGS))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def load(path: Path, world_size: int | None = None) -> JobConfig:
    """Load a run or finetuning config, told by the key that only the latter has."""
    kind = load_finetune_config if "pretrained" in read_yaml(path) else load_config
    return kind(path, world_size=world_size)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_it_loads(path):
    config = load(path)
    load(path, world_size=config.parallel.tensor_model_parallel_size)


@pytest.mark.parametrize("path", CLUSTER_CONFIGS, ids=name_of)
def test_a_cluster_config_loads(path):
    assert load_cluster(path).kind == path.stem.partition("-")[0]


@pytest.mark.parametrize("path", DATA_CONFIGS, ids=name_of)
def test_a_cleaning_config_loads(path):
    assert load_clean_config(path).steps


def test_no_two_runs_share_a_run_directory():
    directories = [load(path).run_dir for path in CONFIGS]
    assert len(set(directories)) == len(directories)


def test_the_configs_that_the_readme_names_are_here():
    shipped = {name_of(path) for path in CONFIGS}
    wanted = {f"configs/gpt/{n}.yaml" for n in ("tiny", "125m", "1b3")} | {
        f"configs/bert/{n}.yaml" for n in ("tiny", "base")
    }
    assert wanted <= shipped
