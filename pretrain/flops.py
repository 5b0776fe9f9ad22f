"""Peak rates of devices, where they are known."""

from __future__ import annotations

import torch

_PEAK_BF16_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0}
"""Dense bf16 peaks from NVIDIA's data sheets (SXM)."""


def peak_tflops(device: torch.device) -> float | None:
    """Peak dense bf16 TFLOP/s of one device; None where it is not known (every CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAK_BF16_TFLOPS.items() if key in name), None)
