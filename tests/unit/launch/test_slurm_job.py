"""One attempt of a job from its batch script on: fake SLURM commands, fake ranks, everything else real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from launch import attempts, slurm_control
from launch.cluster import SlurmClusterConfig
from launch.record import LaunchRecord, read_record, write_record
from launch.slurm import SlurmPlan, render
from pretrain.config.environment import port_of_job
from tests.support import fake_slurm
from tests.support.bounds import MINUTE, within
from tests.support.processes import descendants

REPO = Path(__file__).parents[3]
JOB_ID = os.getpid()  # tests run side by side, and the port follows from it
PORT = port_of_job(str(JOB_ID))


class Scene:
    """A run directory and a fake cluster."""

    def __init__(self, tmp_path: Path) -> None:
        self.run_dir, self.slurm = tmp_path / "a run", tmp_path / "slurm"
        self.processes: list[subprocess.Popen[str]] = []
        fake_slurm.install(self.slurm)

    def start(
        self, *, nodes: str = "localhost,node2", counts: tuple[int, ...] = (2,), **env: str
    ) -> subprocess.Popen[str]:
        """Start the batch script as SLURM would."""
        cluster = SlurmClusterConfig(
            kind="slurm",
            nodes=2,
            ranks_per_node=2,
            time_limit="1:00:00",
            max_failures=1,
            preflight={"all_reduce_seconds": 0},  # it loads torch; tests/slurm has it
        )
        plan = SlurmPlan(
            cluster=cluster,
            config=Path("run.yaml"),
            overrides=("a.b=x $y",),
            run_dir=self.run_dir,
            directory=REPO,
            python=sys.executable,
            node_counts=counts,
            lead_seconds=60,
            module="tests.unit.launch.fake_rank",
        )
        self.run_dir.mkdir(exist_ok=True)
        script = self.run_dir / "job.sbatch"
        script.write_text(render(plan))
        job = {"SLURM_JOB_ID": str(JOB_ID), "SLURM_JOB_NODELIST": nodes, "FAKE_SLURM": str(self.slurm)}
        path = f"{self.slurm}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            ["bash", str(script)],
            env={**os.environ, **job, "PATH": path, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, **options: object) -> tuple[int, str]:
        process = self.start(**options)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def log(self, rank: int) -> str:
        path = self.run_dir / "logs" / f"rank-{rank}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str, ranks: int = 4) -> None:
        deadline = time.monotonic() + 30
        while not all(text in self.log(rank) for rank in range(ranks)):
            assert time.monotonic() < deadline, f"no {text!r} in the logs"
            time.sleep(0.05)

    @property
    def last(self) -> dict[str, object]:
        return attempts.read(self.run_dir / "logs")[-1]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    for process in scene.processes:
        for descendant in descendants(process.pid):
            descendant.kill()
        process.kill()
        process.communicate()


def test_every_rank_gets_its_place_and_the_words(scene):
    code, output = scene.run(FAKE_RANK="environment")
    assert code == 0, output
    for rank in range(4):
        log = scene.log(rank)
        place = f"RANK={rank} WORLD_SIZE=4 LOCAL_RANK={rank % 2} LOCAL_WORLD_SIZE=2 MASTER_ADDR=localhost"
        assert f"{place} MASTER_PORT={PORT}" in log
        assert "argv --config run.yaml --set a.b=x $y" in log
        about = f"attempt 1, rank {rank} of 4, {('localhost', 'node2')[rank // 2]}"
        assert f"=== {about}, " in log and f"--- {about}: exit code 0, " in log
    assert "rank 0 begins" in output and "rank 1 begins" not in output
    assert scene.last["nodes"] == ["localhost", "node2"] and scene.last["reason"] == "the run is complete"
    assert fake_slurm.said(scene.slurm) == []


def test_the_signal_before_the_limit_saves_and_requeues(scene):
    process = scene.start(FAKE_RANK="save-on:SIGUSR1")
    scene.wait_for("ready")
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75, output
    assert fake_slurm.said(scene.slurm) == [["scontrol", "requeue", str(JOB_ID)]]
    assert scene.last["exit_code"] == 75
    code, _ = scene.run()
    assert code == 0 and scene.last["attempt"] == 2


def test_a_clean_stop_does_not_requeue(scene):
    process = scene.start(FAKE_RANK="save-on:SIGUSR1")
    scene.wait_for("ready")
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and fake_slurm.said(scene.slurm) == [], output
    assert "saved; stopped as asked" in output


def test_the_measured_lead_time_saves_before_slurm_signals(scene):
    soon = (datetime.now() + timedelta(seconds=25)).isoformat(timespec="seconds")
    fake_slurm.install(scene.slurm, end=soon)
    (scene.run_dir / "logs").mkdir(parents=True)
    row = {"step": 1, "loss": 1.0, "step_seconds": 100.0}
    (scene.run_dir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    # On a busy machine the signal may come before the ranks listen: they end, and the job goes on as well.
    _, output = scene.run(FAKE_RANK="save-on:SIGUSR1")
    assert "the time limit is near: saving" in output
    assert fake_slurm.said(scene.slurm) == [["scontrol", "requeue", str(JOB_ID)]]


@pytest.mark.parametrize("code", [2, 3])
def test_what_would_fail_again_is_not_requeued(scene, code):
    ended, output = scene.run(FAKE_RANK=f"exit:{code}")
    assert ended == code and fake_slurm.said(scene.slurm) == [], output
    assert "starting again would not help" in output


@pytest.mark.slow
def test_crashes_are_requeued_a_limited_number_of_times(scene):
    for _ in range(2):
        _, output = scene.run(FAKE_RANK_3="exit:9")
        assert len(fake_slurm.said(scene.slurm)) == 1, output
    assert "2 times in a row without a new checkpoint" in output
    assert "rank 3 of 4, node2: exit code 9; its log is" in output
    (scene.run_dir / "checkpoints" / "step-00000001").mkdir(parents=True)  # progress begins the count again
    write_record(
        scene.run_dir, LaunchRecord(backend="slurm", argv=(), directory="/", job_id=str(JOB_ID), script="x")
    )
    refusal = "Requested operation is presently disabled"
    _, output = scene.run(FAKE_RANK_3="suicide", FAKE_SLURM_REFUSES_REQUEUE=refusal)
    assert scene.last["exit_code"] == 137 and scene.last["next_job"] == "7"
    assert f"{refusal}; submitted as job 7 instead, which starts when this one has ended" in output
    assert fake_slurm.said(scene.slurm)[-2:] == [
        ["scontrol", "write", "batch_script", str(JOB_ID), "-"],
        ["sbatch", "--parsable", f"--dependency=afterany:{JOB_ID}"],
    ]
    assert (scene.slurm / "submitted").read_text() == fake_slurm.SCRIPT
    assert read_record(scene.run_dir).job_id == "7"
    log_dir = scene.run_dir / "logs"
    assert attempts.failures_in_a_row(log_dir, "7") == attempts.failures_in_a_row(log_dir, str(JOB_ID)) == 1


def test_a_cancelled_job_is_not_requeued(scene):
    process = scene.start(FAKE_RANK="save-on:SIGTERM")
    scene.wait_for("ready")
    fake_slurm.install(scene.slurm, state="CANCELLED")
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None, "it must wait for the ranks, which SLURM signals itself"
    for log in range(4):
        assert "saved" not in scene.log(log)
    for task in fake_ranks(scene):
        os.kill(task, signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and fake_slurm.said(scene.slurm) == [], output
    assert "the job was cancelled" in output


def fake_ranks(scene: Scene) -> list[int]:
    """Processes of the ranks, told by their module and run directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, env = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if (
            words.split(b"\0")[1:3] == [b"-m", b"tests.unit.launch.fake_rank"]
            and str(scene.slurm).encode() in env
        ):
            found.append(int(path.name))
    return found


def test_a_silent_node_is_left_out_of_the_next_start(scene):
    fake_slurm.install(scene.slurm, excluded="node9")
    with within(MINUTE):
        code, output = scene.run(FAKE_SILENT_NODES="node2")
    assert code == 75 and "preflight: node2: no answer" in output
    assert fake_slurm.said(scene.slurm) == [
        ["scontrol", "requeuehold", str(JOB_ID)],
        ["scontrol", "update", f"JobId={JOB_ID}", "ExcNodeList=node9,node2"],
        ["scontrol", "release", str(JOB_ID)],
    ]
    assert scene.log(0) == "" and "left out by the preflight: node2" in str(scene.last["reason"])


def test_with_nodes_to_spare_the_attempt_goes_on_without_the_bad_one(scene):
    code, output = scene.run(FAKE_SILENT_NODES="node2", nodes="localhost,node2,node3,node4", counts=(1, 2))
    assert code == 0 and "preflight: node2" in output
    assert "1 of 3 nodes stay idle" in output
    assert "of 4, node3" in scene.log(3)
    assert fake_slurm.said(scene.slurm) == []


def test_when_every_node_is_bad_the_job_gives_up(scene):
    code, output = scene.run(FAKE_SILENT_NODES="localhost,node2")
    assert code == 2 and "no node passed the preflight" in output
    assert fake_slurm.said(scene.slurm) == []


def test_a_taken_port_is_passed_over(scene):
    port = PORT
    with socket.create_server(("", port)), within(MINUTE):
        code, output = scene.run(FAKE_RANK="environment")
    assert code == 0 and f"port {port} on this node: Address already in use; trying the next one" in output
    assert f"MASTER_PORT={port + 1}" in scene.log(0)


def test_a_job_that_slurm_has_requeued_meanwhile_is_not_submitted_again(scene):
    code, output = scene.run(
        FAKE_RANK_3="suicide", FAKE_SLURM_REFUSES_REQUEUE="Job is pending execution for job 7"
    )
    assert code == 137 and "requeued" in output and "next_job" not in scene.last
    assert fake_slurm.said(scene.slurm) == [["scontrol", "requeue", str(JOB_ID)]]


def test_a_question_is_answered_when_slurm_ends_all_processes_of_the_job(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\nkill -TERM $$\necho node1\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert slurm_control.host_names("node1") == ["node1"]


def test_a_lost_node_is_named_when_slurm_has_requeued_the_job(scene):
    fake_slurm.install(scene.slurm, state="PENDING", restarts=1)
    code, output = scene.run(FAKE_RANK_2="lost", FAKE_RANK_3="lost")
    assert scene.last["action"] == "requeued" and fake_slurm.said(scene.slurm) == [], output
    assert "on node2 left no word" in str(scene.last["reason"])
    assert "SLURM has put the job back into the queue" in str(scene.last["reason"])


def test_a_controller_that_does_not_answer_ends_nothing(scene):
    """Its silence is waited out: the ranks go on, and their end is judged when it answers again."""
    (scene.slurm / "silent").write_text("1")
    code, output = scene.run(FAKE_RANK="exit:0", FAKE_SLURM_SILENT="Unable to contact slurm controller")
    assert code == 0 and scene.last["reason"] == "the run is complete", output
    assert (scene.slurm / "silent").read_text() == "0"


def test_a_run_directory_that_cannot_be_used_is_a_failure_with_a_reason(scene):
    scene.run_dir.mkdir()
    (scene.run_dir / "logs").mkdir()
    (scene.run_dir / "logs" / "rank-0.log").mkdir()
    code, output = scene.run(FAKE_RANK="exit:0")
    assert code == 1 and "Is a directory" in output
    assert "failure 1 in a row" in str(scene.last["reason"])
