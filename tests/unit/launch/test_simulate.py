"""One rank of a 1,024-rank job of GPT-3's size, built on one CPU, against the formulas."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.estimate import model_state_bytes
from pretrain.config import load_config
from pretrain.config.derive import parameter_count
from pretrain.parity.simulate import Slice, main, state_bytes

REPO = Path(__file__).parents[3]
CONFIG = REPO / "configs" / "gpt" / "175b.yaml"
RANKS, RANK = 1024, 777
BUILD = """
import json, sys
from dataclasses import astuple
from pathlib import Path
from pretrain.config import load_config
from pretrain.parity.simulate import rank_slices
config = load_config(Path(sys.argv[1]), [], 1024)
print(json.dumps([astuple(one) for one in rank_slices(config, 777, 1024)]))
"""


@pytest.fixture(scope="module")
def slices() -> list[Slice]:
    """In a process of its own: a process group is one of a process."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(CONFIG)], capture_output=True, text=True, check=True, timeout=300
    )
    return [
        Slice(name=name, shape=tuple(shape), split=split)
        for name, shape, split in json.loads(done.stdout.splitlines()[-1])
    ]


def test_the_slices_add_up_to_the_model(slices: list[Slice]) -> None:
    config = load_config(CONFIG)
    tp = config.parallel.tensor_model_parallel_size
    assert tp > 1
    assert sum(one.numel * (tp if one.split else 1) for one in slices) == parameter_count(config.model)
    shapes = {one.name: one.shape for one in slices}
    hidden = config.model.hidden_size
    assert shapes["decoder.layers.0.self_attention.linear_qkv.weight"] == (3 * hidden // tp, hidden)
    assert shapes["decoder.layers.95.mlp.linear_fc2.weight"] == (hidden, 4 * hidden // tp)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_memory_is_what_the_estimate_says(slices: list[Slice], stage: int) -> None:
    """The estimate cuts the replicated parameters too, 0.01 % of this model; padding adds less."""
    config = load_config(CONFIG)
    tp = config.parallel.tensor_model_parallel_size
    held = state_bytes(slices, RANKS // tp, stage, "bf16")
    estimate = model_state_bytes(parameter_count(config.model) // tp, RANKS // tp, stage, "bf16")
    assert (held.weights, held.gradients, held.optimizer) == pytest.approx(estimate, rel=2e-3)


def test_a_rank_that_is_none_is_refused() -> None:
    with pytest.raises(Exception, match="--rank: 1024 is not one of 1024 ranks"):
        main(["--config", str(CONFIG), "--nproc", "1024", "--rank", "1024"])
