"""Freed memory stays in the process, so that the next tensor needs no new pages."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from pretrain.parallel.device import keep_freed_memory

keep_freed_memory()
for _ in range(20):  # a small allocation may take the first bytes of what was freed, once or twice
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB are 16,384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
@pytest.mark.parametrize(
    ("set_by_user", "is_kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "4096"}, False)]
)
def test_a_tensor_takes_the_pages_of_the_last_one(set_by_user: dict[str, str], is_kept: bool) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    env.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env | set_by_user, capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) < 1000) == is_kept
