"""A GPT on two nodes through all that SLURM does to a job; its losses are those of an undisturbed run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from launch import attempts
from tests.slurm.support import START_SECONDS, STEPS, Cluster, losses, run_words
from tests.support.runs import HEADWATER, finish, start, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]


def launch(cluster: Cluster, *words: str | Path) -> str:
    """A command of `headwater launch`, as on a login node; its output."""
    code, output = finish(start([*HEADWATER, "launch", *map(str, words)], cluster.environment))
    assert code == 0, output
    return output


def job_of(output: str) -> str:
    found = re.search(r"submitted job (\d+)", output)
    assert found, output
    return found[1]


def test_losses_survive_a_time_limit_and_a_crashed_node(
    cluster: Cluster, corpus: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    description, run_dir = tmp_path / "cluster.yaml", tmp_path / "run"
    fields = {"kind": "slurm", "nodes": "1-2", "ranks_per_node": 2, "time_limit": "30"}
    description.write_text(yaml.safe_dump(fields))
    job = job_of(launch(cluster, "slurm", *run_words(corpus, run_dir), "--cluster", description))
    wait_for_step(run_dir, 3, START_SECONDS)
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # as its time limit would
    cluster.until(lambda: cluster.jobs(job)[0].restarts == 1, "a requeue", 60.0)
    first = len(losses(run_dir))
    wait_for_step(run_dir, first + 22, START_SECONDS)  # behind a checkpoint of its own
    cluster.node("crash", "node2")
    (ended,) = cluster.wait([job], frozenset({"COMPLETED", "FAILED"}), seconds=START_SECONDS)
    assert ended.state == "COMPLETED" and ended.restarts == 2, launch(cluster, "logs", "--job", run_dir)
    told = launch(cluster, "status", run_dir)
    assert f"step        {STEPS} of {STEPS}" in told and "on node2 left no word" in told

    chain = attempts.read(run_dir / "logs")
    assert [one["action"] for one in chain] == ["requeue", "requeued", "done"]
    assert [len(one["nodes"]) for one in chain] == [2, 2, 1]
    assert "SLURM has put the job back into the queue" in chain[1]["reason"]
    assert "all-reduce over 2 nodes, 2 ranks: right" in (run_dir / "logs" / f"slurm-{job}.log").read_text()
    assert losses(run_dir) == pytest.approx(undisturbed, rel=1e-4)
    assert json.loads((run_dir / "launch.json").read_text())["job_id"] == job


def test_time_limits_shorter_than_the_run_are_a_chain_of_jobs(
    cluster: Cluster, corpus: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    """Only SLURM's clock ends an attempt. Requeues are refused, so each limit takes another job."""
    description, run_dir = tmp_path / "cluster.yaml", tmp_path / "run"
    fields = {"kind": "slurm", "nodes": 1, "ranks_per_node": 1, "time_limit": "1", "signal_lead_seconds": 1}
    slow = {"env": {"HEADWATER_FAULT": "train slow"}, "preflight": {"all_reduce_seconds": 0}}
    description.write_text(yaml.safe_dump(fields | slow | {"sbatch_options": ["--no-requeue"]}))
    words = [*run_words(corpus, run_dir), "--set", "parallel.tensor_model_parallel_size=1"]
    job_of(launch(cluster, "slurm", *words, "--cluster", description))

    def ended() -> bool:
        chain = attempts.read(run_dir / "logs")
        return bool(chain) and chain[-1].get("action") not in (None, "requeue")

    cluster.until(ended, "an attempt that is not followed by another", 600.0)
    chain = attempts.read(run_dir / "logs")
    assert len(chain) > 3 and [one["exit_code"] for one in chain] == [75] * (len(chain) - 1) + [0], chain
    assert [one["next_job"] for one in chain[:-1]] == [one["job"] for one in chain[1:]]
    log = (run_dir / "logs" / f"slurm-{chain[0]['job']}.log").read_text()
    assert "cannot requeue the job: " in log and "saving" in log
    assert f"job {chain[-1]['job']} is completed" in launch(cluster, "status", run_dir)
    assert losses(run_dir) == pytest.approx(undisturbed, rel=1e-4)
