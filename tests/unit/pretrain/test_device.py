"""What a rank says of its device."""

from __future__ import annotations

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
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    device.tell_of_idle_gpu()
    assert ("this machine has a GPU, but torch" in capsys.readouterr().err) is told
