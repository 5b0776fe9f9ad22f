"""The all-reduce of the preflight, between processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from launch.slurm_network import read_answers
from pretrain import network_check


@pytest.mark.distributed
@pytest.mark.slow
def test_ranks_reduce_for_real() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tasks = []
    for rank in range(2):
        place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
        env = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        words = [sys.executable, "-m", "pretrain.network_check", "--seconds", "60"]
        tasks.append(subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True))
    for rank, task in enumerate(tasks):
        output, _ = task.communicate(timeout=120)
        last = read_answers(output.splitlines()[-1])[0]
        assert (last["rank"], last["problem"], task.returncode) == (rank, None, 0), json.dumps(last)


def test_a_rank_that_finds_no_gpu_says_so_where_one_is_wanted(monkeypatch, capfd) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(network_check, "adopt_place", lambda: None)
    assert network_check.main(["--seconds", "5", "--gpu"]) == 1
    answers = [read_answers(line)[0] for line in capfd.readouterr().out.splitlines()]
    assert answers[-1]["state"] == "done" and "finds no GPU" in answers[-1]["problem"]
    assert not answers[-1]["waited"]
