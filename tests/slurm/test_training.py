"""A GPT on two nodes through all that SLURM does to a job; its losses are those of an undisturbed run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from launch import attempts
from tests.slurm.support import Cluster
from tests.support.runs import HEADWATER, finish, rows, run, start, tiny_run, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

STEPS = 400
START_SECONDS = 240.0
"""For four ranks to import torch on two cores."""

# Without dropout: its random numbers depend on the layout.
OVERRIDES = ("model.hidden_dropout=0.0", "model.attention_dropout=0.0", "training.eval_interval=0")


def run_words(corpus: Path, run_dir: Path) -> list[str]:
    words = tiny_run("gpt", corpus, run_dir, steps=STEPS)
    extra = (*OVERRIDES, "checkpoint.save_interval=20", "parallel.tensor_model_parallel_size=2")
    return [*words, *(word for text in extra for word in ("--set", text))]


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in rows(run_dir) if "loss" in row]


def launch(cluster: Cluster, *words: str | Path) -> str:
    """A command of `headwater launch`, as on a login node; its output."""
    code, output = finish(start([*HEADWATER, "launch", *map(str, words)], cluster.environment))
    assert code == 0, output
    return output


def job_of(output: str) -> str:
    found = re.search(r"submitted job (\d+)", output)
    assert found, output
    return found[1]


def save_and_requeue(cluster: Cluster, job: str, run_dir: Path, step: int, restarts: int) -> None:
    """Signal the job as its time limit would, once it has trained beyond a step; wait until it runs again."""
    wait_for_step(run_dir, step, START_SECONDS)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.until(lambda: cluster.jobs(job)[0].restarts == restarts, "a requeue", 60.0)


def test_losses_survive_signals_a_crashed_node_and_a_stop(
    cluster: Cluster, corpus: Path, tmp_path: Path
) -> None:
    description, run_dir = tmp_path / "cluster.yaml", tmp_path / "run"
    fields = {"kind": "slurm", "nodes": "1-2", "ranks_per_node": 2, "gpus_per_node": 2, "time_limit": "30"}
    description.write_text(yaml.safe_dump(fields))
    words = run_words(corpus, run_dir)
    job = job_of(launch(cluster, "slurm", *words, "--cluster", description))
    save_and_requeue(cluster, job, run_dir, step=3, restarts=1)
    first = len(losses(run_dir))
    save_and_requeue(cluster, job, run_dir, step=first + 3, restarts=2)
    second = len(losses(run_dir))
    wait_for_step(run_dir, second + 22, START_SECONDS)  # behind a checkpoint of its own
    cluster.node("crash", "node2")
    cluster.until(lambda: cluster.jobs(job)[0].restarts == 3, "a requeue after the crash", 90.0)
    wait_for_step(run_dir, min(STEPS - 30, len(losses(run_dir)) + 1), START_SECONDS)
    launch(cluster, "stop", run_dir)
    (stopped,) = cluster.wait([job], seconds=60.0)
    assert stopped.restarts == 3
    cluster.node("boot", "node2")
    assert "saved; stopped as asked" in launch(cluster, "status", run_dir)
    job = job_of(launch(cluster, "resume", run_dir))
    (ended,) = cluster.wait([job], seconds=START_SECONDS)
    assert ended.state == "COMPLETED", launch(cluster, "logs", "--job", run_dir)
    assert f"step        {STEPS} of {STEPS}" in launch(cluster, "status", run_dir)

    chain = attempts.read(run_dir / "logs")
    ends = [one.get("action") for one in chain]
    assert ends[:2] + ends[3:] == ["requeue", "requeue", "stop", "done"]  # of the third SLURM decides
    assert [len(one["nodes"]) for one in chain[:4]] == [2, 2, 2, 1]
    undisturbed = tmp_path / "undisturbed"
    run([*HEADWATER, "launch", "local", "--nproc", "2", *run_words(corpus, undisturbed)])
    assert len(losses(undisturbed)) == STEPS
    assert losses(run_dir) == pytest.approx(losses(undisturbed), rel=1e-4)
    assert json.loads((run_dir / "launch.json").read_text())["job_id"] == job
