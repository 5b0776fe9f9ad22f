"""The one place that knows whether ranks compute on CPU or CUDA.

megatron-core draws its random numbers through `torch.cuda` and allocates the buffers of sequence parallelism
on `torch.cuda.current_device()`. On a machine without CUDA, `use_cpu` puts the CPU behind the same functions,
so that dropout, sequence parallelism and activation recompute run the code that they run on a GPU.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.tensor_parallel import random as megatron_random

from pretrain.config.environment import cpu_is_meant, cuda_build, device_index, has_accelerator
from pretrain.parallel import CPU_IS_MEANT

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type of weights, by `precision`."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of <malloc.h>


def compute_device() -> torch.device:
    """The device of this rank: a GPU (`device_index`), or cpu where CUDA is absent or DS_ACCELERATOR=cpu."""
    if cpu_is_meant() or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", device_index(torch.cuda.device_count()))


def tell_of_idle_gpu() -> None:
    """Say on stderr that a GPU of this machine is not used, unless that is meant; for a rank on the CPU."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1", "NoDevFiles")
    if wanted and not CPU_IS_MEANT and has_accelerator():
        torch_is = f"torch {torch.__version__} ({cuda_build(torch.version.cuda)})"
        print(
            f"headwater: this machine has a GPU, but {torch_is} finds none, so the CPU computes; install a "
            "torch that fits the driver, or set DS_ACCELERATOR=cpu",
            file=sys.stderr,
            flush=True,
        )


def backend(device: torch.device) -> str:
    """Name of the collective backend for a device."""
    return "nccl" if device.type == "cuda" else "gloo"


class CpuRngTracker(megatron_random.CudaRNGStatesTracker):  # type: ignore[misc]
    """megatron-core's tracker of named random streams, on the CPU generator."""

    def add(self, name: str, seed: int) -> None:
        """Start (or restart) the stream `name` from `seed`."""
        generator = torch.Generator()
        generator.manual_seed(seed)
        self.seeds_.add(seed)
        self.states_[name] = generator.get_state()

    @contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        """Draw from the stream `name` inside the block; the default stream is untouched."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(before)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor instead of giving it back to the kernel.

    Otherwise every large activation is mapped anew in every step, and the kernel clears 100,000 pages a step:
    a tenth to a fifth of a step on CPU (benchmarks/LOG.md). The process stays as large as it once was. Other
    C libraries, and what the user has set (MALLOC_*, tunables of maps and trimming), stay as they are.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name.startswith("MALLOC_") for name in os.environ) or re.search("mmap_|trim_", tunables):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            mallopt(parameter, value)


def use_cpu() -> None:
    """Let megatron-core draw from the CPU generator and allocate on the CPU; call before a model is built."""

    def get_state(*_args: Any, **_kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *_args: Any, **_kwargs: Any) -> None:
        torch.set_rng_state(state)

    megatron_random._get_cuda_rng_state = get_state
    megatron_random._set_cuda_rng_state = set_state
    megatron_random._CUDA_RNG_STATE_TRACKER = CpuRngTracker()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    # Read as `device=torch.cuda.current_device()`; without CUDA the original only raises.
    current_device: Any = lambda: torch.device("cpu")  # noqa: E731 (typed: torch says int)
    torch.cuda.current_device = current_device
