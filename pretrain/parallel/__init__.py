"""Ranks: process groups, random number streams, and the DeepSpeed engine."""

import os

import torch

from pretrain.config.environment import cpu_is_meant

CPU_IS_MEANT = cpu_is_meant()
"""What the user said, before the default below."""

if not torch.cuda.is_available():
    # DeepSpeed looks for an accelerator when it is imported; without a GPU that search is unreliable.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
