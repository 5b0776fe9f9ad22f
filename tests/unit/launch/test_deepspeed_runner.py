"""`headwater launch deepspeed`: what would be started, and what is refused at once."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

import pytest

from launch import cli
from launch.deepspeed_runner import read_hostfile
from pretrain.config import ConfigError

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
    words = shlex.split(command)
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


def test_hosts_and_ports_are_tried_first(hostfile, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("launch.deepspeed_runner.data_findings", lambda config: [])
    commands = tmp_path / "bin"
    fake(
        commands,
        "ssh",
        'case "$*" in *node2*) echo "ssh: connect to host node2: No route" >&2; exit 255;; esac',
    )
    monkeypatch.setenv("PATH", str(commands))
    assert launch(hostfile) == 2
    assert "no pdsh on PATH" in capsys.readouterr().err
    fake(commands, "pdsh", "")
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}/bin")
    assert launch(hostfile) == 2
    assert (
        "node2 cannot be reached with ssh without a password: ssh: connect to host node2"
        in capsys.readouterr().err
    )
    fake(commands, "ssh", "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert launch(hostfile, "--master-addr", "127.0.0.1", "--master-port", str(port)) == 2
    assert f"port {port} is taken on 127.0.0.1" in capsys.readouterr().err
