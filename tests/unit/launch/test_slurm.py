"""The batch script: as committed, in good shell, and every value literal when bash runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import ready_scripts
from launch.cluster import ContainerConfig, PreflightConfig, SlurmClusterConfig
from launch.slurm import ArrayTask, SlurmPlan, render, usable_node_counts
from pretrain.config import ConfigError, load_config

REPO = Path(__file__).parents[3]
ODD = 'it\'s $HOME `id` "x" \\ %j #;&*'


def make_cluster(**changes: Any) -> SlurmClusterConfig:
    fields = {"kind": "slurm", "nodes": 2, "ranks_per_node": 2, "time_limit": "1:00:00"}
    return SlurmClusterConfig(**{**fields, **changes})


def make_plan(tmp_path: Path, **changes: Any) -> SlurmPlan:
    fields: dict[str, Any] = {
        "cluster": make_cluster(),
        "config": Path("configs/run.yaml"),
        "overrides": (),
        "run_dir": Path("runs/x"),
        "directory": tmp_path,
        "python": sys.executable,
        "node_counts": (2,),
        "lead_seconds": 60,
    }
    return SlurmPlan(**{**fields, **changes})


@pytest.mark.parametrize("name", ready_scripts.scripts())
def test_the_committed_scripts_are_what_is_rendered(name):
    committed = (ready_scripts.SCRIPTS / name).read_text()
    assert committed == ready_scripts.scripts()[name], (
        "run `python -m launch.ready_scripts` and look at the diff"
    )


def test_no_other_script_is_there():
    by_hand = {"deepspeed.sh", "deepspeed-slurm.sbatch"}  # tests/slurm/test_deepspeed.py runs these
    assert {path.name for path in ready_scripts.SCRIPTS.iterdir()} == by_hand | set(ready_scripts.scripts())


def shellcheck(*paths: Path) -> None:
    command = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert command, "shellcheck is not installed; run `make venv`"
    # SC1091: a venv on the cluster cannot be followed here. SC2016: a `$` in a value is meant literally.
    words = [command, "--exclude=SC1091,SC2016", *map(str, paths)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_shellcheck_passes_on_the_committed_scripts():
    shellcheck(*ready_scripts.SCRIPTS.iterdir())


def echo_python(directory: Path) -> str:
    """An interpreter that writes down its arguments, working directory and variables."""
    path = directory / "my python"
    told = "[sys.argv[1:], os.getcwd(), dict(os.environ)]"
    code = f"import json,os,sys; json.dump({told}, open(os.environ['OUT'], 'w'))"
    path.write_text(f'#!/bin/sh\nexec \'{sys.executable}\' -c "{code}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def execute(plan: SlurmPlan, tmp_path: Path, **env: str) -> tuple[list[str], str, dict[str, str]]:
    """Run a script in bash; what the process at its end was given."""
    script, out = tmp_path / "job.sbatch", tmp_path / "out.json"
    script.write_text(render(plan))
    shellcheck(script)
    result = subprocess.run(
        ["bash", str(script)], env={**os.environ, "OUT": str(out), **env}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return tuple(json.loads(out.read_text()))


def test_odd_characters_reach_the_job_as_they_are(tmp_path):
    directory = tmp_path / "a dir with $HOME and 'quotes'"
    directory.mkdir()
    container = ContainerConfig(
        runtime="apptainer", image=f"/images/{ODD}.sif", mounts=[ODD], python="python3"
    )
    preflight = PreflightConfig(scratch_paths=[f"/scratch/{ODD}"])
    cluster = make_cluster(
        env={"ODD": ODD, "IF": "=mlx5_0,mlx5_1"},
        srun_options=[f"--comment={ODD}"],
        container=container,
        preflight=preflight,
    )
    plan = make_plan(
        tmp_path,
        cluster=cluster,
        directory=directory,
        config=Path(f"configs/{ODD}.yaml"),
        run_dir=Path(f"runs/{ODD}"),
        overrides=(f"data.corpora.0.name={ODD}", "optimizer.lr=1e-3"),
        python=echo_python(tmp_path),
    )
    words, where, env = execute(plan, tmp_path)
    assert where == str(directory)
    assert env["ODD"] == ODD and env["IF"] == "=mlx5_0,mlx5_1"
    first = words.index("--")
    second = words.index("--", first + 1)
    assert words[:2] == ["-m", "launch.slurm_job"]
    assert words[words.index("--run-dir") + 1] == f"runs/{ODD}"
    assert words[words.index("--scratch") + 1] == f"/scratch/{ODD}"
    start = words[first + 1 : second]
    assert start[0] == "srun" and f"--comment={ODD}" in start
    assert start[-4:] == ["--bind", ODD, f"/images/{ODD}.sif", "python3"]
    assert words[second + 1 :] == [
        *["-m", "pretrain.train", "--config", f"configs/{ODD}.yaml"],
        *["--set", f"data.corpora.0.name={ODD}", "--set", "optimizer.lr=1e-3"],
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_each_task_of_an_array_has_its_run(tmp_path, index):
    tasks = tuple(ArrayTask(overrides=(f"a.b={value}",), run_dir=f"runs/{value}") for value in (ODD, "2"))
    plan = make_plan(tmp_path, tasks=tasks, overrides=("seed=1",), python=echo_python(tmp_path))
    words, _, _ = execute(plan, tmp_path, SLURM_ARRAY_TASK_ID=str(index))
    value = (ODD, "2")[index]
    assert words[words.index("--run-dir") + 1] == f"runs/{value}"
    assert words[-6:] == ["--set", "seed=1", "--set", f"a.b={value}", "--set", f"run_dir=runs/{value}"]


def test_an_array_task_without_a_run_ends(tmp_path):
    tasks = (ArrayTask(overrides=("seed=1",), run_dir="runs/1"),)
    script = tmp_path / "job"
    script.write_text(render(make_plan(tmp_path, tasks=tasks)))
    env = {**os.environ, "SLURM_ARRAY_TASK_ID": "5"}
    result = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True)
    assert result.returncode == 2 and "no run for array task 5" in result.stderr


def test_directives_are_quoted_and_escaped(tmp_path):
    plan = make_plan(
        tmp_path / "50% off", run_dir=Path("runs/my run"), cluster=make_cluster(partition="gpu#1")
    )
    lines = render(plan).splitlines()
    assert '#SBATCH --job-name="my run"' in lines
    assert '#SBATCH --partition="gpu#1"' in lines
    assert f'#SBATCH --output="{tmp_path}/50%% off/runs/my run/logs/slurm-%j.log"' in lines


def test_setup_lines_come_before_everything_else_and_verbatim(tmp_path):
    setup = "module() { MODULES=\"$*\"; export MODULES; }\nmodule load 'cuda/12'\n"
    cluster = make_cluster(setup=setup, env={"LATER": "1"})
    _, _, env = execute(make_plan(tmp_path, cluster=cluster, python=echo_python(tmp_path)), tmp_path)
    assert env["MODULES"] == "load cuda/12"


def test_a_setup_that_fails_ends_the_job(tmp_path):
    script = tmp_path / "job"
    script.write_text(render(make_plan(tmp_path, cluster=make_cluster(setup="false"), python="/bin/touch x")))
    assert subprocess.run(["bash", str(script)]).returncode == 1


def test_a_range_of_nodes_runs_on_those_that_divide_the_batch():
    config = load_config(REPO / "configs" / "gpt" / "tiny.yaml")  # 16 samples in micro-batches of 4
    assert usable_node_counts(config, make_cluster(nodes="1-8", ranks_per_node=1)) == (1, 2, 4)
    with pytest.raises(ConfigError, match=r"with nodes: 3 \(3 ranks\).*global_batch_size"):
        usable_node_counts(config, make_cluster(nodes="3-8", ranks_per_node=1))
