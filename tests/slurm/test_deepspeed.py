"""DeepSpeed's launcher between two hosts with networks of their own: over ssh, and through SLURM.

One run that one launcher after the other goes on with; its losses are those of an undisturbed run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import attempts
from tests.slurm.support import START_SECONDS, STEPS, Cluster, losses, run_words
from tests.support.runs import HEADWATER, REPOSITORY, finish, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SCRIPTS = REPOSITORY / "launch" / "scripts"
RANK_VARIABLES = ("DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1")


class Hosts:
    """Two hosts with sshd; the user's home has nothing in it, his ssh uses keys of the test's own."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster, self.directory = cluster, directory
        ssh = directory / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {cluster.directory}/ssh/ssh_config "$@"\n')
        ssh.chmod(0o755)

    def hostfile(self, slots: int) -> Path:
        path = self.directory / f"hosts-{slots}"
        path.write_text("".join(f"{name} slots={slots}\n" for name in ("node1", "node2")))
        return path

    def start(self, command: Sequence[str | Path]) -> subprocess.Popen[str]:
        """Run a command on the first host, as its user would who has logged in there."""
        env = self.cluster.environment
        words = [f"PATH={self.directory}/bin:{env['PATH']}", f"HOME={self.directory}"]
        words += [f"{name}={env[name]}" for name in ("PYTHONPATH", "SLURM_CONF")]
        return self.cluster.start_on("node1", "env", "-i", *words, *command)

    def headwater(self, *words: str | Path) -> subprocess.Popen[str]:
        return self.start([*HEADWATER, *words])


@pytest.fixture
def hosts(cluster: Cluster, tmp_path: Path) -> Hosts:
    return Hosts(cluster, tmp_path)


def test_losses_are_the_same_through_every_way_of_the_deepspeed_launcher(
    hosts: Hosts, corpus: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    run_dir = tmp_path / "a%h"  # pdsh would put the host's name in place of %h
    # Plain deepspeed, by the ready script; one rank a host: the tensor-parallel group spans both.
    (tmp_path / ".deepspeed_env").write_text("\n".join(RANK_VARIABLES))
    words = [word.replace("%", "%%") for word in run_words(corpus, run_dir, steps=10)]
    code, output = finish(hosts.start([SCRIPTS / "deepspeed.sh", hosts.hostfile(1), *words]))
    assert code == 0 and len(losses(run_dir)) == 10, output

    # Its slurm backend; two ranks a host.
    options = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=2")
    script, words = SCRIPTS / "deepspeed-slurm.sbatch", run_words(corpus, run_dir, steps=20)
    job = hosts.cluster.submit(*options, f"--output={tmp_path}/job.log", script, *words)
    (ended,) = hosts.cluster.wait([job], seconds=START_SECONDS)
    assert ended.state == "COMPLETED" and len(losses(run_dir)) == 20, (tmp_path / "job.log").read_text()

    # Ours through mpirun, one rank a host.
    (tmp_path / ".deepspeed_env").unlink()
    ours = ["launch", "deepspeed", *(word for text in RANK_VARIABLES for word in ("--env", text))]
    mpi = ["--launcher", "openmpi", "--launcher-args=--allow-run-as-root", "--hostfile", hosts.hostfile(1)]
    code, output = finish(hosts.headwater(*ours, *mpi, *run_words(corpus, run_dir, steps=22)))
    assert code == 0 and len(losses(run_dir)) == 22, output

    # Ours over ssh, stopped in the middle.
    words = run_words(corpus, run_dir, steps=100_000)
    process = hosts.headwater(*ours, "--hostfile", hosts.hostfile(2), *words)
    wait_for_step(run_dir, 25, START_SECONDS, process)
    code, told = finish(hosts.headwater("launch", "stop", run_dir))
    # By a file, or through its launcher where the first heartbeat is not there yet.
    assert code == 0 and "to save and stop" in told, told
    code, output = finish(process, 120.0)
    done = len(losses(run_dir))
    assert code == 75 and f"stopped after step {done}, saved" in output, output

    same = min(done, STEPS)
    assert losses(run_dir)[:same] == pytest.approx(undisturbed[:same], rel=1e-4)
    chain = attempts.read(run_dir / "logs")  # of those that we launched
    assert [(one["nodes"], one["exit_code"]) for one in chain] == [
        (["node1", "node2"], code) for code in (0, 0, 75)
    ]
