"""`headwater launch deepspeed`: what would be started, and what is refused at once."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import attempts, cli
from launch.deepspeed_runner import read_hostfile
from pretrain.config import ConfigError
from pretrain.config.identity import lock_run_directory
from tests.support.bounds import MINUTE, within

REPO = Path(__file__).parents[3]
TINY = str(REPO / "configs" / "gpt" / "tiny.yaml")


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "my hosts"
    path.write_text("# two nodes\nnode1 slots=2\n\nnode2 slots=2  # the other\n")
    return path


def launch(hostfile: Path, *words: str) -> int:
    return cli.main(["launch", "deepspeed", "--hostfile", str(hostfile), "--config", TINY, *words])


def test_dry_run_shows_hosts_variables_and_command(hostfile, capsys):
    assert (
        launch(hostfile, "--set", "seed=$1", "--env", "NCCL_DEBUG=INFO", "--dry-run") == 2
    )  # seed is a number
    capsys.readouterr()
    assert launch(hostfile, "--set", "run_dir=a$b", "--env", "NCCL_DEBUG=INFO", "--dry-run") == 0
    *comments, command = capsys.readouterr().out.splitlines()
    assert comments[1:3] == ["#   node1 slots=2", "#   node2 slots=2"] and "#   NCCL_DEBUG=INFO" in comments
    setting, *words = shlex.split(command)
    assert setting == f"DS_ENV_FILE={Path('a$b').absolute()}/deepspeed_env"
    assert words[1:5] == ["-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
    assert words[words.index("--master_addr") + 1] == "node1"
    assert words[words.index("--module") + 1] == "pretrain.train"
    assert words[-1] == "'run_dir=a$b'"  # the shell of the other host reads it once more


def test_without_ssh_each_host_starts_its_own(hostfile, capsys):
    assert launch(hostfile, "--no-ssh", "--node-rank", "1", "--set", "run_dir=a b", "--dry-run") == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[words.index("--no_ssh") + 1 :][:2] == ["--node_rank", "1"] and words[-1] == "run_dir=a b"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no hosts"),
        ("node1\n", "line 1"),
        ("a slots=2\na slots=2\n", "line 2.*twice"),
        ("a slots=0\n", "slots=N"),
    ],
)
def test_a_wrong_hostfile_is_named(tmp_path, text, named):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named):
        read_hostfile(path)
    with pytest.raises(ConfigError, match="cannot read the hostfile"):
        read_hostfile(tmp_path / "absent")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--set", "run_dir=a b", "--dry-run"], "cannot pass a blank on"),
        (["--env", "A=$B", "--dry-run"], "the remote shell would read the value"),
        (["--env", "A", "--dry-run"], "write NAME=VALUE"),
        (["--set", "batch.global_batch_size=2", "--dry-run"], "batch.global_batch_size"),
    ],
)
def test_what_cannot_be_passed_on_is_refused(hostfile, capsys, words, named):
    assert launch(hostfile, *words) == 2
    assert named in capsys.readouterr().err


def fake(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


REMOTE = 'for word; do :; done; exec sh -c "$word"'
"""ssh that runs the command here."""


def test_hosts_and_ports_are_tried_first(hostfile, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("launch.jobs.data_findings", lambda config: [])
    run = ("--set", f"run_dir={tmp_path}/run")
    commands = tmp_path / "bin"
    no_route = 'case "$*" in *node2*) echo "ssh: connect to host node2: No route" >&2; exit 255;; esac\n'
    fake(commands, "ssh", no_route + REMOTE)
    monkeypatch.setenv("PATH", str(commands))
    assert launch(hostfile, *run) == 2
    assert "no pdsh on PATH" in capsys.readouterr().err
    fake(commands, "pdsh", "")
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}/bin")
    with within(MINUTE):
        assert launch(hostfile, *run) == 2
    told = capsys.readouterr().err
    assert "node2 cannot be reached with ssh without a password: ssh: connect to host node2" in told
    assert "node1" not in told
    fake(commands, "ssh", REMOTE)
    with socket.create_server(("127.0.0.1", 0)) as server, within(MINUTE):
        port = server.getsockname()[1]
        assert launch(hostfile, *run, "--master-addr", "127.0.0.1", "--master-port", str(port)) == 2
    assert f"port {port} is taken on 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("on_node2", "words"),
    [
        ("exec sleep 600", "node2 cannot be reached with ssh: no answer within 3 s"),
        (
            "echo sh: python: not found >&2; exit 127",
            "node2: {python} does not run there as it does here: sh",
        ),
        (
            'sh -c "$word" | sed \'s/"pydantic": "[^"]*"/"pydantic": "1.0"/\'',
            "node2: pydantic 1.0, other nodes have",
        ),
        (
            'sh -c "$(echo "$word" | sed "s:/run --token:/bin --token:")"',
            "is not the run's directory on the first node (stale mount?)",
        ),
    ],
)
def test_a_host_unlike_the_others_is_named_within_a_minute(
    hostfile, tmp_path, monkeypatch, capsys, on_node2, words
):
    monkeypatch.setattr("launch.jobs.data_findings", lambda config: [])
    monkeypatch.setattr("launch.deepspeed_hosts.ANSWER_SECONDS", 3.0 if "sleep" in on_node2 else 50.0)
    commands = tmp_path / "bin"
    fake(commands, "pdsh", "")
    fake(
        commands, "ssh", f'for word; do :; done; case "$*" in *" node2 "*) {on_node2}; exit;; esac\n{REMOTE}'
    )
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}/bin{os.pathsep}/usr/bin")
    with within(MINUTE):
        assert launch(hostfile, "--set", f"run_dir={tmp_path}/run") == 2
    assert words.format(python=sys.executable) in capsys.readouterr().err


def rendered(hostfile: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The words of the deepspeed command."""
    assert launch(hostfile, "--master-port", "29511", *words, "--dry-run") == 0
    return shlex.split(capsys.readouterr().out.splitlines()[-1])


def test_mpirun_gets_the_place_and_the_variables(hostfile, capsys):
    words = rendered(
        hostfile, capsys, "--launcher", "openmpi", "--env", "A=b c", "--launcher-args", "--mca btl tcp"
    )
    assert words[1:] == [
        *["-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)],
        *["--master_addr", "node1", "--master_port", "29511", "--launcher", "openmpi", "--force_multi"],
        "--launcher_args=-x MASTER_ADDR=node1 -x MASTER_PORT=29511 -x 'A=b c' --mca btl tcp",
        *["--module", "pretrain.train", "--config", TINY],
    ]


def test_srun_gets_the_nodes_and_the_module_as_its_script(hostfile, capsys, tmp_path):
    words = rendered(hostfile, capsys, "--launcher", "slurm", "--env", "A=1")
    assert words == [
        *["A=1", "MASTER_PORT=29511", sys.executable, "-m", "deepspeed.launcher.runner"],
        *["--hostfile", str(hostfile), "--master_addr", "node1", "--master_port", "29511"],
        *["--launcher", "slurm", "--force_multi", "--no_ssh_check"],
        "--launcher_args=--nodes=2 --nodelist=node1,node2 --ntasks-per-node=2 --distribution=block",
        *["--", "-mpretrain.train", "--config", TINY],
    ]


def test_deepspeed_itself_makes_of_it_what_we_mean(hostfile, capsys):
    """Its own parser and its own backends, as installed."""
    runner = pytest.importorskip("deepspeed.launcher.runner")
    from deepspeed.launcher import multinode_runner

    for backend, kind in (("slurm", "SlurmRunner"), ("openmpi", "OpenMPIRunner")):
        words = rendered(hostfile, capsys, "--launcher", backend, "--set", "run_dir=a b")
        args = runner.parse_args(words[words.index("deepspeed.launcher.runner") + 1 :])
        pool = {"node1": 2, "node2": 2}
        active = {name: list(range(slots)) for name, slots in pool.items()}
        command = getattr(multinode_runner, kind)(args, "", pool).get_cmd({}, active)
        ranks = command[command.index(sys.executable) :]
        module = ["-mpretrain.train"] if backend == "slurm" else ["-m", "pretrain.train"]
        assert ranks == [sys.executable, "-u", *module, "--config", TINY, "--set", "run_dir=a b"]
        assert command[:3] == (["srun", "-n", "4"] if backend == "slurm" else ["mpirun", "-n", "4"])


def test_srun_needs_an_allocation_and_the_same_slots(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("launch.jobs.data_findings", lambda config: [])
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    fake(tmp_path / "bin", "sinfo", "")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    path = tmp_path / "hosts"
    for slots, named in ((1, "within an allocation"), (3, "the same slots on every host")):
        path.write_text(f"node1 slots=1\nnode2 slots={slots}\n")
        assert launch(path, "--launcher", "slurm") == 2
        assert named in capsys.readouterr().err


@pytest.fixture
def started(hostfile, tmp_path, monkeypatch):
    """`launch deepspeed` in a process of its own, with a stand-in for DeepSpeed's launcher."""
    stand_in = tmp_path / "deepspeed" / "launcher" / "runner.py"
    stand_in.parent.mkdir(parents=True)
    for package in (stand_in.parent, stand_in.parent.parent):
        (package / "__init__.py").touch()
    stand_in.write_text(
        "import os, sys, time\nfrom pathlib import Path\n"
        "print(open(os.environ['DS_ENV_FILE']).read(), flush=True)\n"
        f"stop = Path({str(tmp_path / 'run' / 'stop')!r})\n"
        "while not stop.exists():\n    time.sleep(0.02)\n"
        "if 'WAIT' in os.environ:\n    time.sleep(60)\n"
        "sys.exit(75)\n"
    )
    fake(tmp_path / "bin", "ssh", REMOTE)
    fake(tmp_path / "bin", "pdsh", "")
    code = (
        "import sys, launch.jobs; launch.jobs.data_findings = lambda config: []\n"
        "from launch.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["launch", "deepspeed", "--hostfile", str(hostfile), "--config", TINY, "--env", "B=2"]
    words += ["--master-addr", "localhost", "--set", f"run_dir={tmp_path}/run"]
    processes = []

    def start(**variables: str) -> subprocess.Popen[str]:
        (tmp_path / ".deepspeed_env").write_text("A=1\n\n")
        env = {"PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
        env |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPO}"} | variables
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path / "bin",
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["A=1\n", "B=2\n"]
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_run_that_trains_already_keeps_its_record(hostfile, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("launch.jobs.data_findings", lambda config: [])
    first = ("--no-ssh", "--node-rank", "0", "--master-addr", "127.0.0.1")
    with lock_run_directory(str(tmp_path / "run")):
        assert launch(hostfile, *first, "--set", f"run_dir={tmp_path}/run") == 2
    assert "another job is training" in capsys.readouterr().err
    assert not (tmp_path / "run" / "launch.json").exists()


def test_a_signal_asks_the_ranks_to_save_and_the_attempt_is_recorded(started, tmp_path):
    process = started()
    (attempt,) = attempts.read(tmp_path / "run" / "logs")
    assert attempt["nodes"] == ["node1", "node2"] and "exit_code" not in attempt
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and "asked the ranks to save and stop" in output
    assert not (tmp_path / "run" / "stop").exists()
    (attempt,) = attempts.read(tmp_path / "run" / "logs")
    assert attempt["exit_code"] == 75


def test_a_second_signal_ends_it_at_once(started, tmp_path):
    process = started(WAIT="1")
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 30
    while not (tmp_path / "run" / "stop").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    with within(30):
        process.communicate()
    assert process.returncode == 143


def test_stop_reaches_ranks_that_no_signal_reaches(started, tmp_path, capsys):
    run_dir = tmp_path / "run"
    process = started()
    (run_dir / "attempt.json").write_text('{"attempt": "x"}')
    (run_dir / "heartbeats").mkdir()
    (run_dir / "heartbeats" / "rank-0.json").write_text("{}")
    assert cli.main(["launch", "status", str(run_dir)]) == 0
    assert ": running, launched with deepspeed" in capsys.readouterr().out
    assert cli.main(["launch", "stop", str(run_dir)]) == 0
    assert "asked the ranks to save and stop" in capsys.readouterr().out
    process.communicate(timeout=30)
    assert process.returncode == 75
    (run_dir / "attempt.json").write_text('{"attempt": "x", "ended": "now"}')
    assert cli.main(["launch", "stop", str(run_dir)]) == 0
    assert "nothing runs on this machine" in capsys.readouterr().out and not (run_dir / "stop").exists()
    # From another host: no launcher here, but a rank lives.
    (run_dir / "attempt.json").write_text('{"attempt": "y"}')
    assert cli.main(["launch", "status", str(run_dir)]) == 0
    assert ": running, launched with deepspeed" in capsys.readouterr().out
    (run_dir / "launch.json").unlink()  # started by torchrun
    assert cli.main(["launch", "stop", str(run_dir)]) == 0 and (run_dir / "stop").exists()
    os.utime(run_dir / "heartbeats" / "rank-0.json", (0, 0))
    assert cli.main(["launch", "stop", str(run_dir)]) == 2
    assert "no launch.json there" in capsys.readouterr().err
