"""`headwater launch slurm` on two nodes: the job's life, with ranks that stand in for training."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from launch import attempts
from launch.record import LaunchRecord, write_record
from tests.slurm.support import Cluster
from tests.support.bounds import MINUTE, within
from tests.support.runs import HEADWATER, REPOSITORY, finish, start

pytestmark = pytest.mark.slurm

TINY = REPOSITORY / "configs" / "gpt" / "tiny.yaml"


class Submitter:
    """Renders scripts as `headwater launch slurm` does and edits them to run stand-ins, then submits."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster, self.run_dir = cluster, directory / "my run"
        self.description = directory / "cluster.yaml"

    def script(self, *words: str, behaviour: str = "exit:0", **changes: object) -> Path:
        fields = {"kind": "slurm", "nodes": "1-2", "ranks_per_node": 1, "gpus_per_node": 1, "time_limit": "5"}
        # The all-reduce loads torch; the tests of training have it.
        fixed = {"env": {"FAKE_RANK": behaviour}, "preflight": {"all_reduce_seconds": 0}}
        self.description.write_text(yaml.safe_dump(fields | fixed | changes))
        code, text = self.headwater(
            "slurm",
            "--config",
            str(TINY),
            "--cluster",
            str(self.description),
            "--set",
            f"run_dir={self.run_dir}",
            *words,
            "--dry-run",
        )
        assert code == 0, text
        path = self.run_dir / "launch.sbatch"
        (self.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("-m pretrain.train", "-m tests.unit.launch.fake_rank"))
        return path

    def headwater(self, *words: str) -> tuple[int, str]:
        return finish(start([*HEADWATER, "launch", *words], self.cluster.environment))

    def rank_log(self, rank: int) -> str:
        path = self.run_dir / "logs" / f"rank-{rank}.log"
        return path.read_text() if path.exists() else ""

    def log(self, job: str) -> str:
        path = self.run_dir / "logs" / f"slurm-{job}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def submitter(cluster: Cluster, tmp_path: Path) -> Submitter:
    return Submitter(cluster, tmp_path)


def test_an_array_runs_each_value_in_a_directory_of_its_own(cluster: Cluster, submitter: Submitter) -> None:
    script = submitter.script("--array", "optimizer.lr=1e-4,3e-4", behaviour="environment", nodes=1)
    job = cluster.submit(str(script))
    assert {one.state for one in cluster.wait([job])} == {"COMPLETED"}
    for rate in ("1e-4", "3e-4"):
        log = (submitter.run_dir / f"lr={rate}" / "logs" / "rank-0.log").read_text()
        assert f"--set optimizer.lr={rate} --set run_dir={submitter.run_dir}/lr={rate}" in log


def test_scancel_reaches_the_ranks_and_ends_the_job(cluster: Cluster, submitter: Submitter) -> None:
    job = cluster.submit(str(submitter.script(behaviour="save-on:SIGTERM")))
    cluster.until(lambda: all("ready" in submitter.rank_log(rank) for rank in (0, 1)), "ranks that wait")
    cluster.run("scancel", job)
    (ended,) = cluster.wait([job])
    assert ended.state == "CANCELLED" and ended.restarts == 0
    cluster.until(lambda: "the job was cancelled" in submitter.log(job), "a verdict")
    for rank in (0, 1):
        assert "saved on SIGTERM" in submitter.rank_log(rank)


def test_stop_saves_and_the_run_rests(cluster: Cluster, submitter: Submitter) -> None:
    job = cluster.submit(submitter.script(behaviour="save-on:SIGUSR1"))
    write_record(submitter.run_dir, LaunchRecord(backend="slurm", argv=(), directory="/", job_id=job))
    cluster.until(lambda: all("ready" in submitter.rank_log(rank) for rank in (0, 1)), "ranks that wait")
    code, told = submitter.headwater("stop", str(submitter.run_dir))
    assert code == 0 and f"asked job {job} to save and stop" in told, told
    (ended,) = cluster.wait([job])
    assert ended.restarts == 0 and "saved; stopped as asked" in submitter.log(job)
    assert all("saved on SIGUSR1" in submitter.rank_log(rank) for rank in (0, 1))


def hide_run_directory(cluster: Cluster, node: str, run_dir: Path) -> Callable[[], None]:
    cluster.node("exec", node, "mount", "-t", "tmpfs", "tmpfs", str(run_dir))
    return lambda: cluster.node("exec", node, "umount", str(run_dir)) and None


def another_pydantic(cluster: Cluster, node: str, run_dir: Path) -> Callable[[], None]:
    real = next(file for file in metadata.files("pydantic") or [] if file.name == "METADATA").locate()
    fake = run_dir / "METADATA"
    fake.write_text(
        re.sub(r"^Version: .*$", "Version: 1.0", Path(str(real)).read_text(), count=1, flags=re.M)
    )
    cluster.node("exec", node, "mount", "--bind", str(fake), str(real))
    return lambda: cluster.node("exec", node, "umount", str(real)) and None


def broken_torch(cluster: Cluster, node: str, run_dir: Path) -> Callable[[], None]:
    """Its version is right, but it cannot be loaded: only the all-reduce finds out."""
    real = next(file for file in metadata.files("torch") or [] if str(file) == "torch/__init__.py").locate()
    fake = run_dir / "broken.py"
    fake.write_text("raise ImportError('libcudart.so.12: cannot open shared object file')\n")
    cluster.node("exec", node, "mount", "--bind", str(fake), str(real))
    return lambda: cluster.node("exec", node, "umount", str(real)) and None


@pytest.mark.parametrize(
    ("spoil", "words", "all_reduce_seconds"),
    [
        (hide_run_directory, "is not the run's directory on the first node", 0),
        (another_pydantic, "pydantic 1.0, other nodes have", 0),
        (broken_torch, "rank 1: libcudart.so.12: cannot open shared object file", 50),
    ],
)
def test_a_bad_node_is_named_and_the_attempt_goes_on_without_it(
    cluster: Cluster,
    submitter: Submitter,
    spoil: Callable[..., Callable[[], None]],
    words: str,
    all_reduce_seconds: int,
) -> None:
    preflight = {"all_reduce_seconds": all_reduce_seconds}
    # Without GPUs one task a node takes part in the all-reduce.
    script = submitter.script(behaviour="environment", preflight=preflight, gpus_per_node=0)
    mend = spoil(cluster, "node2", submitter.run_dir)
    try:
        job = cluster.submit(str(script))
        with within(MINUTE):
            (ended,) = cluster.wait([job], seconds=MINUTE)
    finally:
        mend()
    assert ended.state == "COMPLETED", submitter.log(job)
    assert "preflight: node2: " in submitter.log(job) and words in submitter.log(job)
    assert "RANK=0 WORLD_SIZE=1 " in submitter.log(job)


def test_a_bad_first_node_is_excluded_and_the_job_starts_again_elsewhere(
    cluster: Cluster, submitter: Submitter
) -> None:
    preflight = {"scratch_paths": ["/run/scratch"], "min_scratch_gb": 0, "all_reduce_seconds": 0}
    script = submitter.script(preflight=preflight)
    cluster.node("exec", "node2", "mkdir", "/run/scratch")  # /run is each node's own
    job = cluster.submit(str(script))
    (ended,) = cluster.wait([job], frozenset({"COMPLETED", "FAILED"}), seconds=90.0)
    log = submitter.log(job)
    assert ended.state == "COMPLETED" and ended.restarts == 1 and ended.node == "node2", log
    assert "preflight: node1: /run/scratch is not there" in log and "requeued without node1" in log
    chain = attempts.read(submitter.run_dir / "logs")
    assert [one["nodes"] for one in chain] == [["node1", "node2"], ["node2"]]
    assert [one["action"] for one in chain] == ["requeue", "done"]


def test_refusals_are_explained(cluster: Cluster, submitter: Submitter, corpus: Path) -> None:
    submitter.script()
    run = [
        "--config",
        str(TINY),
        "--cluster",
        str(submitter.description),
        "--set",
        f"run_dir={submitter.run_dir}",
    ]
    run += ["--set", f"data.corpora.0.path={corpus}", "--set", "model.vocab_size=1000"]
    with within(MINUTE):
        code, output = submitter.headwater("slurm", *run, "--cluster-set", "partition=nowhere")
    assert code == 2 and "sbatch refused the job: " in output and "nvalid partition" in output, output
    code, output = submitter.headwater("status", str(submitter.run_dir))
    assert code == 2 and "no launch.json there" in output
    assert cluster.run("squeue", "-h") == "" and sys.executable in submitter.script().read_text()
