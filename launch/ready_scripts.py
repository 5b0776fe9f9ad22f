"""The files in `launch/scripts/`, for those who prefer to edit a script.

They are what the renderers give for the shipped configs, so they say what `headwater launch` says;
`python -m launch.ready_scripts` writes them.
"""

from __future__ import annotations

from pathlib import Path

from launch.cluster import SlurmClusterConfig, load_cluster
from launch.slurm import ArrayTask, SlurmPlan, render, usable_node_counts
from pretrain.config import load_config

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = REPO / "launch" / "scripts"
PROJECT = Path("/path/to/headwater")
RUN_CONFIG = Path("configs/gpt/1b3.yaml")
LEARNING_RATES = ("1e-4", "2e-4", "4e-4")


def scripts() -> dict[str, str]:
    """Text of each file by its name."""
    return {
        "slurm-a100.sbatch": render(_slurm_plan("slurm-a100")),
        "slurm-h100.sbatch": render(_slurm_plan("slurm-h100")),
        "slurm-array.sbatch": render(_slurm_plan("slurm-a100", LEARNING_RATES)),
    }


def main() -> None:
    """Write the files."""
    for name, text in scripts().items():
        (SCRIPTS / name).write_text(text, encoding="utf-8")


def _slurm_plan(cluster_name: str, learning_rates: tuple[str, ...] = ()) -> SlurmPlan:
    cluster = load_cluster(REPO / "configs" / "cluster" / f"{cluster_name}.yaml")
    assert isinstance(cluster, SlurmClusterConfig)
    config = load_config(REPO / RUN_CONFIG)
    tasks = tuple(
        ArrayTask(overrides=(f"optimizer.lr={rate}",), run_dir=f"{config.run_dir}/lr={rate}")
        for rate in learning_rates
    )
    return SlurmPlan(
        cluster=cluster,
        config=RUN_CONFIG,
        overrides=(),
        run_dir=Path(config.run_dir),
        directory=PROJECT,
        python=cluster.python or ".venv/bin/python",
        node_counts=usable_node_counts(config, cluster),
        lead_seconds=300,
        min_disk_gb=16,
        tasks=tasks,
    )


if __name__ == "__main__":
    main()
