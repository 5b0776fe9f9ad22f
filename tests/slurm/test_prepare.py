"""`headwater data prepare --executor slurm` on two nodes."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.slurm.support import Cluster
from tests.support.preparation import (
    CLEANING,
    Preparation,
    assert_same,
    record_of,
    train_tokenizer,
    write_documents,
)
from tests.support.runs import environment, finish, run, start

pytestmark = pytest.mark.slurm

SLURM = ("--executor", "slurm", "--task-count", "4")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    """A corpus made by one process, with cleaning and both kinds of duplicates; several files of input."""
    directory = tmp_path_factory.mktemp("local")
    whole = write_documents(directory / "all.jsonl", 4_000_000)
    lines = whole.read_text().splitlines(keepends=True)
    inputs = tuple(directory / f"part-{part}.jsonl" for part in range(4))
    for part, path in enumerate(inputs):
        path.write_text("".join(lines[part::4]))
    tokenizer = train_tokenizer(whole, directory / "tokenizer.model")
    clean = directory / "clean.yaml"
    clean.write_text(CLEANING)
    preparation = Preparation(inputs, tokenizer, directory / "corpus", clean)
    run(preparation.command())
    return preparation


def prepare(cluster: Cluster, preparation: Preparation, *words: str) -> tuple[int, str]:
    """Run the command as on a login node; its exit code and output."""
    return finish(start(preparation.command(*SLURM, *words), cluster.environment))


def submitted(cluster: Cluster, preparation: Preparation, *words: str) -> list[str]:
    """Submit; the jobs' ids."""
    code, output = prepare(cluster, preparation, *words)
    assert code == 0, output
    found = re.search(r"submitted (\d+) jobs: ([\d ]+);", output)
    assert found and len(found[2].split()) == int(found[1]), output
    return found[2].split()


def logs(preparation: Preparation) -> str:
    directory = preparation.out.parent / f"{preparation.out.name}.slurm-logs"
    return "".join(path.read_text() for path in sorted(directory.iterdir()))


def tasks_run(preparation: Preparation) -> Counter[str]:
    """How often each task was finished, by the logs of the jobs."""
    return Counter(re.findall(r"^(\w+: task \d+) of \d+ is finished", logs(preparation), re.MULTILINE))


def test_the_array_makes_the_bytes_of_a_local_run(
    cluster: Cluster, local: Preparation, tmp_path: Path
) -> None:
    there = local.into(tmp_path / "corpus")
    jobs = submitted(cluster, there, "--sbatch=--exclusive")  # a node for each task, so that both get some
    code, output = prepare(cluster, there)
    assert code == 2 and f"jobs {', '.join(jobs)} of an earlier submission still wait or run" in output
    ended = cluster.wait(jobs)
    assert {job.state for job in ended} == {"COMPLETED"}, logs(there)
    assert {job.node for job in ended} == {"node1", "node2"}
    assert_same(there.out, local.out)
    record = record_of(there.out)
    assert record["duplicates"]["exact"] > 20 and record["duplicates"]["near_only"] > 20
    assert not there.work.exists()
    assert set(tasks_run(there).values()) == {1}
    code, output = prepare(cluster, there)
    assert code == 0 and "already complete" in output


def test_a_failed_stage_ends_the_rest_and_the_same_command_runs_what_is_missing(
    cluster: Cluster, local: Preparation, tmp_path: Path
) -> None:
    there = local.into(tmp_path / "corpus")
    jobs = submitted(cluster, there, "--sbatch=--hold")
    damaged = local.inputs[2]
    before, times = damaged.read_bytes(), damaged.stat()
    damaged.write_bytes(before + b"{}\n")
    try:
        cluster.run("scontrol", "release", *jobs)
        ended = cluster.wait(jobs)
    finally:
        damaged.write_bytes(before)
        os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    by_state = Counter(job.state for job in ended)
    assert by_state["FAILED"] == 1 and by_state["COMPLETED"] == 3 and by_state["CANCELLED"] >= 4, by_state
    assert f"headwater: error: {damaged} changed while it was read" in logs(there)
    assert not there.out.exists()
    done = tasks_run(there)
    assert {job.state for job in cluster.wait(submitted(cluster, there))} == {"COMPLETED"}, logs(there)
    assert_same(there.out, local.out)
    assert set(tasks_run(there).values()) == {1}, "a finished task ran again"
    assert set(done) < set(tasks_run(there)) and len(done) == 3


def test_a_node_that_crashes_in_the_array_costs_only_its_tasks(
    cluster: Cluster, local: Preparation, tmp_path: Path
) -> None:
    there = local.into(tmp_path / "corpus")
    jobs = submitted(cluster, there, "--sbatch=--exclusive")
    running = cluster.until(
        lambda: [job for job in cluster.jobs(jobs[0]) if job.state == "RUNNING" and job.node],
        "a running task",
    )
    cluster.node("crash", running[0].node)
    ended = cluster.wait(jobs, seconds=150.0)
    assert {job.state for job in ended} == {"COMPLETED"}, logs(there)
    assert sum(job.restarts for job in ended) >= 1
    assert_same(there.out, local.out)
    assert set(tasks_run(there).values()) == {1}


def test_refusals_are_explained_and_leave_no_jobs(
    cluster: Cluster, local: Preparation, tmp_path: Path
) -> None:
    there = local.into(tmp_path / "corpus")
    code, output = prepare(cluster, there, "--sbatch=--partition=nowhere")
    assert code == 2 and "sbatch refused the job: " in output and "nvalid partition" in output
    assert "Traceback" not in output and cluster.run("squeue", "--noheader") == ""
    paths = os.pathsep.join(
        path for path in environment()["PATH"].split(os.pathsep) if not (Path(path) / "sbatch").exists()
    )
    elsewhere = local.into(tmp_path / "elsewhere")
    code, output = finish(start(elsewhere.command(*SLURM), environment() | {"PATH": paths}))
    assert (code, output) == (
        2,
        "headwater: error: no sbatch on PATH: run this on a machine that submits to SLURM\n",
    )
    assert not elsewhere.work.exists()
