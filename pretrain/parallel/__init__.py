"""Ranks: process groups, random number streams, and the DeepSpeed engine."""

import os

import torch

if not torch.cuda.is_available():
    # DeepSpeed looks for an accelerator when it is imported, and its own search is not reliable without a GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
