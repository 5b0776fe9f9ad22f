"""Planted faults: `headwater parity` and the check inside a run must find them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.parity.command import main
from tests.support.ranks import RankPool

REPOSITORY = Path(__file__).parents[2]
CONFIG = ["--config", str(REPOSITORY / "configs" / "gpt" / "tiny.yaml")]
HERE = "tests.distributed.test_parity"


def plant_unreduced_norm() -> Any:
    """Leave the gradients of norms as partial sums under sequence parallelism."""
    from pretrain.models import norm

    original = norm.mark_sequence_parallel
    norm.mark_sequence_parallel = lambda module, config: None
    return lambda: setattr(norm, "mark_sequence_parallel", original)


def plant_repeated_bias() -> Any:
    """Let every tensor-parallel rank add the bias of a row-parallel layer before the sum over ranks."""
    import torch
    from megatron.core.tensor_parallel import RowParallelLinear
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region

    original = RowParallelLinear.forward

    def forward(self: Any, hidden: torch.Tensor) -> Any:
        added = torch.matmul(hidden, self.weight.t()) + self.bias
        return reduce_from_tensor_model_parallel_region(added), torch.zeros_like(self.bias)

    RowParallelLinear.forward = forward
    return lambda: setattr(RowParallelLinear, "forward", original)


PLANTS = {"norm": plant_unreduced_norm, "bias": plant_repeated_bias}


def norm_trace(config: Any, steps: int) -> Any:
    return _trace("norm", config, steps)


def bias_trace(config: Any, steps: int) -> Any:
    return _trace("bias", config, steps)


def _trace(fault: str, config: Any, steps: int) -> Any:
    from pretrain.parity.probe import trace_layout

    restore = PLANTS[fault]()
    try:
        return trace_layout(config, steps)
    finally:
        restore()


def checked_run(fault: str, zero: int, split: bool, precision: str = "fp32", steps: int = 2) -> str:
    """On one rank: train with a fault (or none) and the check behind every step; returns its message."""
    from pretrain.config import load_config
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from pretrain.parity.batches import micro_batches
    from pretrain.parity.layouts import Layout, laid_out
    from pretrain.parity.probe import fresh_model
    from pretrain.parity.replicas import ReplicaError, check_replicas
    from pretrain.parity.shrink import shrunk
    from pretrain.step import train_step

    tp = 1 if fault == "drift over dp" else 2
    layout = Layout(tp=tp, dp=2 // tp, zero=zero, sequence_parallel=split, precision=precision)
    config = laid_out(shrunk(load_config(Path(CONFIG[1]))), layout)
    restore = PLANTS.get(fault, lambda: lambda: None)()
    topology = initialize_topology(tp)
    model: Any = fresh_model(config, topology)
    engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    message = ""
    try:
        for step in range(steps):
            batches = micro_batches(config, step, topology.data_parallel_rank, topology.data_parallel_size)
            train_step(engine, batches, lr=1e-3)
            if fault.startswith("drift") and step == 1 and topology.rank == 1:
                weight = model.decoder.final_layernorm.weight
                getattr(weight, "ds_tensor", weight).data.view(-1)[3] += 1.0 / 64
            check_replicas(engine, batches[0], step + 1)
    except ReplicaError as error:
        message = str(error)
    finally:
        restore()
        engine.close()
    return message


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks


@pytest.mark.distributed
def test_a_sound_layout_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    assert main([*CONFIG, "--layouts", "tp2 zero0 sp", "tp2 bf16", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 layouts equal one rank" in printed and "DIFFERS" not in printed
    assert "| tp2 dp1 zero0 acc1 fp32 sp |" in out.read_text()


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "layout", "culprit"),
    [
        ("norm", "tp2 zero1 sp", "layernorm"),
        ("norm", "tp2 zero3 bf16 sp", "layernorm"),
        ("bias", "tp2 zero1", "loss"),
        ("bias", "tp2 zero2 bf16", "loss"),
    ],
)
def test_planted_faults_are_found(
    capsys: pytest.CaptureFixture[str], fault: str, layout: str, culprit: str
) -> None:
    assert main([*CONFIG, "--layouts", layout], probe=f"{HERE}:{fault}_trace") == 1
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DIFFERS")]
    assert any(culprit in line for line in told), told


@pytest.mark.distributed
@pytest.mark.slow
def test_a_layout_that_fails_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CONFIG, "--layouts", "dp2 zero1", "tp2 zero1"], probe=f"{HERE}:failing") == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILS") == 2 and "0 of 2 layouts" in printed
    assert "planted" in printed and "died in" in printed


def failing(config: Any, steps: int) -> Any:
    """One layout raises, on the other a rank is killed."""
    if config.parallel.tensor_model_parallel_size == 2 and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("planted")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("zero", "split", "precision"),
    [(0, True, "fp32"), (1, True, "bf16"), (3, False, "fp32")],
)
def test_the_check_passes_a_sound_run(pool: RankPool, zero: int, split: bool, precision: str) -> None:
    found = pool.run(f"{HERE}:checked_run", fault="none", zero=zero, split=split, precision=precision)
    assert found == ["", ""]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("fault", "zero", "split", "precision", "named"),
    [
        ("norm", 1, True, "fp32", "layernorm"),
        ("norm", 3, True, "bf16", "layernorm"),
        ("bias", 1, False, "fp32", "linear_proj is"),
        ("bias", 2, False, "bf16", "linear_proj is"),
        ("drift over tp", 3, False, "fp32", "weight of decoder.final_layernorm.weight differs from rank 0"),
        ("drift over dp", 2, False, "bf16", "weight of decoder.final_layernorm.weight differs from rank 0"),
    ],
)
def test_the_check_finds_planted_faults(
    pool: RankPool, fault: str, zero: int, split: bool, precision: str, named: str
) -> None:
    found = pool.run(f"{HERE}:checked_run", fault=fault, zero=zero, split=split, precision=precision)
    assert found[0] == found[1], "all ranks stop alike"
    assert named in found[0]
    assert found[0].startswith("step 2" if fault.startswith("drift") else "step 1")
