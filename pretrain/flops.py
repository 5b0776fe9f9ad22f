"""Throughput in model FLOPs, and MFU where the peak of the hardware is known."""

from __future__ import annotations

import torch

from pretrain.config.derive import head_flops_per_token, train_flops_per_token
from pretrain.config.schema import RunConfig

_PEAK_BF16_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0}
"""Dense bf16 peaks from NVIDIA's data sheets (SXM)."""


def flops_per_step(config: RunConfig) -> float:
    """Model FLOPs of one optimizer step: forward and backward, recompute not counted."""
    tokens = config.batch.global_batch_size * config.batch.seq_length
    predicted = 1.0 if config.model.kind == "gpt" else config.data.masking.mask_probability
    body = train_flops_per_token(config.model, config.batch.seq_length)
    return tokens * (body + predicted * head_flops_per_token(config.model))


def peak_tflops(device: torch.device) -> float | None:
    """Peak dense bf16 TFLOP/s of one device; None where it is not known (every CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAK_BF16_TFLOPS.items() if key in name), None)
