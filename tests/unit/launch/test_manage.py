"""Submitting, and looking after what was submitted: fake SLURM commands, no ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import attempts, cli
from launch.record import LaunchRecord, write_record
from tests.support import fake_slurm
from tests.support.bounds import MINUTE, within
from tests.unit.launch.test_check import TOKENIZER, write_split

REPO = Path(__file__).parents[3]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake commands on PATH."""
    fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "slurm"))
    return tmp_path / "slurm"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A run and a cluster that can be submitted."""
    for split in ("train", "validation"):
        write_split(tmp_path / "corpus" / split, 8192)
    (tmp_path / "corpus" / "tokenizer.model").write_bytes(TOKENIZER)
    config = yaml.safe_load((REPO / "configs" / "gpt" / "tiny.yaml").read_text())
    config["run_dir"] = str(tmp_path / "run")
    config["data"]["corpora"] = [{"name": "c", "path": str(tmp_path / "corpus")}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    cluster = {"kind": "slurm", "nodes": 2, "ranks_per_node": 2, "time_limit": "1:00:00", "partition": "gpu"}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    return ["slurm", "--config", str(tmp_path / "run.yaml"), "--cluster", str(tmp_path / "cluster.yaml")]


def launch(*words: str) -> int:
    return cli.main(["launch", *words])


def test_submit_status_stop_and_resume(slurm, words, tmp_path, capsys):
    run_dir = tmp_path / "run"
    fake_slurm.install(slurm, state="COMPLETED")
    assert launch(*words) == 0
    told = capsys.readouterr().out
    assert "submitted job 7" in told and f"headwater launch stop {run_dir}" in told
    assert fake_slurm.said(slurm) == [["sbatch", "--parsable", str(run_dir / "launch.sbatch")]]
    assert "#SBATCH --partition=gpu" in (run_dir / "launch.sbatch").read_text()
    assert launch("resume", str(run_dir)) == 0
    assert fake_slurm.said(slurm)[1] == fake_slurm.said(slurm)[0]

    fake_slurm.install(slurm, state="RUNNING", end="2030-01-01T00:00:00")
    capsys.readouterr()
    assert launch(*words) == 2
    assert "job 7 of" in capsys.readouterr().err
    attempts.begin(run_dir / "logs", job="7", nodes=["node1", "node2"]).record_end(75, 3.2, reason="saved")
    (run_dir / "config.yaml").write_text("training: {train_steps: 50}\n")
    (run_dir / "metrics.jsonl").write_text('{"step": 9, "loss": 2.5, "step_seconds": 0.25}\n{"step": 10, "lo')
    assert launch("status", str(run_dir)) == 0
    told = capsys.readouterr().out
    assert "SLURM job 7 is running on node[1-2], time limit at 2030-01-01T00:00:00" in told
    assert "9 of 50, loss 2.5000, 0.25 s a step" in told
    assert "node1, node2: exit code 75 after 3 s, saved" in told
    assert launch("stop", str(run_dir)) == 0
    assert fake_slurm.said(slurm)[-1] == ["scancel", "--batch", "--signal=USR2", "7"]
    fake_slurm.install(slurm, state="PENDING")
    assert launch("stop", str(run_dir)) == 0
    assert fake_slurm.said(slurm)[-1] == ["scancel", "--state=PENDING", "7"]


def test_an_array_lives_as_long_as_one_of_its_runs(slurm, words, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert launch(*words, "--array", "seed=1,2,3") == 0
    lines = [
        f"JobId={8 + n} JobState={state}\n" for n, state in enumerate(("COMPLETED", "RUNNING", "PENDING"))
    ]
    (slurm / "job").write_text("".join(lines))
    assert launch(*words, "--array", "seed=1,2,3") == 2
    assert "is running already" in capsys.readouterr().err
    assert launch("stop", str(run_dir)) == 0
    assert fake_slurm.said(slurm)[-2:] == [
        ["scancel", "--state=PENDING", "7"],
        ["scancel", "--batch", "--signal=USR2", "7"],
    ]


def test_without_the_commands_of_slurm_the_files_still_tell(slurm, words, tmp_path, capsys, monkeypatch):
    assert launch(*words) == 0
    monkeypatch.setenv("PATH", "/nowhere")
    assert launch("status", str(tmp_path / "run")) == 0
    told = capsys.readouterr().out
    assert "SLURM job 7: no scontrol on PATH" in told and "checkpoint  none yet" in told


def test_an_array_takes_nodes_that_suit_each_of_its_runs(slurm, words, tmp_path):
    """16 samples divide over 2, 4 or 8 ranks with micro-batches of 1, over 2 or 4 with those of 4."""
    sizes = ("--set", "batch.micro_batch_size=1", "--array", "batch.micro_batch_size=1,4")
    assert launch(*words, "--cluster-set", "nodes=1-4", *sizes) == 0
    assert "--node-counts 1,2 " in (tmp_path / "run" / "launch.sbatch").read_text()


def test_the_data_of_every_run_of_an_array_is_looked_at(slurm, words, tmp_path, capsys):
    assert launch(*words, "--array", f"data.corpora.0.path={tmp_path / 'corpus'},{tmp_path / 'absent'}") == 2
    assert "absent" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_an_array_has_a_record_for_each_run(slurm, words, tmp_path, capsys):
    assert launch(*words, "--array", "optimizer.lr=1e-3,0.5", "seed=1,2") == 0
    names = ["lr=1e-3,seed=1", "lr=1e-3,seed=2", "lr=0.5,seed=1", "lr=0.5,seed=2"]
    for index, name in enumerate(names):
        record = json.loads((tmp_path / "run" / name / "launch.json").read_text())
        assert record["job_id"] == f"7_{index}"
    assert "#SBATCH --array=0-3" in (tmp_path / "run" / "launch.sbatch").read_text()
    assert f"7_3  {tmp_path}/run/lr=0.5,seed=2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--array", "seed"], "write section.key=value"),
        (["--array", "seed=1,1"], "share a run directory"),
        (["--array", "seed=1,2", "--array", "seed=3,4"], "seed is given twice"),
        (["--array", "run_dir=a,b"], "run_dir follows from the other keys"),
        (["--array", "optimizer.lr=-1,1e-3"], "optimizer.lr"),
        (["--cluster-set", "nodes"], "--cluster-set 'nodes': write key=value"),
        (["--cluster-set", "nodes=3-4"], "with nodes: 3"),
        (["--cluster-set", "partitio=x"], "did you mean 'partition'?"),
        (["--cluster-set", "nodes=1", "partitio=x"], "did you mean 'partition'?"),
        (["--set", "data.corpora.0.path=absent"], "absent"),
    ],
)
def test_what_cannot_run_is_not_submitted(slurm, words, capsys, extra, named):
    assert launch(*words, *extra) == 2
    assert named in capsys.readouterr().err and fake_slurm.said(slurm) == []


def test_refusals_of_slurm_are_told(slurm, words, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_SLURM_REFUSES", "invalid partition specified: gpu")
    with within(MINUTE):
        assert launch(*words) == 2
    assert (
        "sbatch refused the job: sbatch: error: invalid partition specified: gpu" in capsys.readouterr().err
    )
    monkeypatch.setenv("PATH", "/nowhere")
    with within(MINUTE):
        assert launch(*words) == 2
    assert "no sbatch on PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (["launch", "local", "--config", "my.yaml"], "running"),
        (["launch", "resume", "runs/x"], "running"),
        (["launch", "resume", "runs/y"], "not running"),
        (["serve"], "not running"),
    ],
)
def test_the_launcher_of_a_local_run_is_told_from_other_processes(words, state, tmp_path, capsys):
    run_dir = tmp_path / "x"
    command = [sys.executable, "-c", "print(flush=True); input()", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()  # it is what its command line says
        attempts.begin(run_dir / "logs", launcher_pid=process.pid, argv=["--config", "my.yaml"])
        write_record(run_dir, LaunchRecord(backend="local", argv=("launch", "local"), directory="."))
        assert launch("status", str(run_dir)) == 0
        process.kill()
    assert f"x: {state}, launched with local" in capsys.readouterr().out


def test_a_directory_that_nobody_launched_is_refused(tmp_path, capsys):
    for command in ("status", "logs", "stop", "resume"):
        assert launch(command, str(tmp_path)) == 2
        assert "no launch.json there" in capsys.readouterr().err


def test_logs_of_a_rank_and_of_the_job(slurm, words, tmp_path, capsys):
    assert launch(*words) == 0
    (tmp_path / "run" / "logs" / "rank-0.log").write_text(
        "=== attempt 1, x ===\nold\n=== attempt 2, x ===\nnew\n"
    )
    (tmp_path / "run" / "logs" / "slurm-7.log").write_text("headwater: attempt 1\n")
    capsys.readouterr()
    assert launch("logs", str(tmp_path / "run")) == 0
    assert capsys.readouterr().out == "new\n"
    assert launch("logs", "--job", str(tmp_path / "run")) == 0
    assert capsys.readouterr().out == "headwater: attempt 1\n"
    assert launch("logs", "--rank", "3", str(tmp_path / "run")) == 2
    assert "rank-3.log does not exist yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "ok       device     about "),
        ({"device_memory_gb": 0.001}, "error    device     about "),
        ({"nodes": "2-3"}, "warning  nodes      runs on 2 of 2-3 nodes"),
        ({"nodes": 2}, "ok       time       an attempt has 3300 s of 3600"),
    ],
)
def test_check_looks_at_the_cluster(words, tmp_path, capsys, settings, line):
    cluster = yaml.safe_load((tmp_path / "cluster.yaml").read_text())
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster | {"device_memory_gb": 80} | settings))
    code = cli.main(["check", *words[1:]])
    assert line in capsys.readouterr().out
    assert code == (2 if line.startswith("error") else 0)


def test_check_compares_the_time_limit_with_measured_steps(words, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    row = {"step": 20, "loss": 2.0, "step_seconds": 60.0}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert cli.main(["check", *words[1:]]) == 0
    # 180 steps of 60 s, 3600 - (60 + 3 x 60) s an attempt
    assert "ok       time       180 steps of at most 60 s: 4 attempts of 3600 s" in capsys.readouterr().out
    cluster = yaml.safe_load((tmp_path / "cluster.yaml").read_text()) | {"time_limit": "2"}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    assert cli.main(["check", *words[1:]]) == 2
    assert "too short for a step and a save" in capsys.readouterr().out
