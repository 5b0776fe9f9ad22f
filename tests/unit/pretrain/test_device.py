"""What a rank says of its device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pretrain.parallel import device


@pytest.mark.parametrize(
    ("has_gpu", "env", "told"),
    [
        (True, {}, True),
        (True, {"CUDA_VISIBLE_DEVICES": "0"}, True),
        (True, {"CUDA_VISIBLE_DEVICES": ""}, False),
        (True, {"DS_ACCELERATOR": "cpu"}, False),
        (False, {}, False),
    ],
)
def test_a_gpu_that_torch_does_not_find_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_gpu: bool,
    env: dict[str, str],
    told: bool,
) -> None:
    monkeypatch.setattr(device, "has_accelerator", lambda: has_gpu)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "CPU_IS_MEANT", env.get("DS_ACCELERATOR") == "cpu")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    device.tell_of_idle_gpu()
    assert ("this machine has a GPU, but torch" in capsys.readouterr().err) is told


@pytest.mark.parametrize(("env", "told"), [({}, True), ({"DS_ACCELERATOR": "cpu"}, False)])
def test_it_is_told_when_a_rank_starts(env: dict[str, str], told: bool) -> None:
    """In a process of its own: importing the engine makes the CPU the default where CUDA is absent."""
    start = (
        "from pretrain.config import environment; environment.has_accelerator = lambda: True\n"
        "from pretrain.parallel.topology import initialize_topology; initialize_topology(1)\n"
    )
    plain = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run([sys.executable, "-c", start], env=plain | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("this machine has a GPU, but torch" in done.stderr) is told
