"""`training.replica_check_interval` in real training: harmless where all is well, fatal after a fault."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.distributed.test_parity import PLANTS
from tests.support.ranks import RankPool
from tests.support.training import Layout, tiny_config

HERE = "tests.distributed.test_replica_check"
pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def attempt_with(fault: str, config: dict[str, Any]) -> tuple[int, str]:
    """On one rank: a whole training job with a planted fault (or none); its exit code and what it says."""
    from pretrain.parallel.zero import Engine
    from tests.support.data_chain import attempt

    original, updates = Engine.step, []

    def drifting_step(self: Any, lr: float) -> Any:
        """After the third update, one element on the second rank is another; ZeRO would gather it anew."""
        outcome = original(self, lr)
        updates.append(outcome)
        if len(updates) == 3 and self.topology.rank == 1:
            weight = dict(self.model.named_parameters())["decoder.final_layernorm.weight"]
            getattr(weight, "ds_tensor", weight).data.view(-1)[3] += 1.0 / 64
        return outcome

    restore = PLANTS.get(fault, lambda: lambda: None)()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            with patch.object(Engine, "step", drifting_step if fault == "drift" else original):
                code = attempt(config)
    finally:
        restore()
    return code, said.getvalue()


def settings(corpus: Path, run_dir: Path, layout: Layout, interval: int, split: bool) -> dict[str, Any]:
    """Four steps with dropout and biases that are not zero, a checkpoint after each."""
    dropout = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    config: dict[str, Any] = tiny_config("gpt", layout, str(run_dir), model=dropout).model_dump(mode="json")
    config["data"] = {"corpora": [{"name": "corpus", "path": str(corpus)}]}
    config["parallel"]["sequence_parallel"] = split
    config["checkpoint"] = {"save_interval": 1, "keep_last": 9}
    config["training"] = {"train_steps": 4, "log_interval": 1, "replica_check_interval": interval}
    return config


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks


def test_a_sound_run_is_the_same_with_the_check(corpus: Path, pool: RankPool, tmp_path: Path) -> None:
    """Sequence parallelism, bf16, dropout: the check's forward pass draws nothing and leaves nothing."""
    for interval in (0, 1):
        config = settings(corpus, tmp_path / str(interval), Layout(2, 1, "bf16"), interval, split=True)
        assert [code for code, _ in pool.run(f"{HERE}:attempt_with", fault="none", config=config)] == [0, 0]
    assert losses(tmp_path / "1") == losses(tmp_path / "0") and len(losses(tmp_path / "1")) == 4


@pytest.mark.parametrize(
    ("fault", "layout", "split", "at", "named"),
    [
        ("norm", Layout(2, 1), True, 1, "layernorm"),
        ("bias", Layout(2, 2), False, 2, "linear_proj is"),
        ("drift", Layout(1, 0), False, 4, "weight of decoder.final_layernorm.weight differs from rank 0"),
    ],
)
def test_a_fault_ends_the_run_unsaved(
    corpus: Path, pool: RankPool, tmp_path: Path, fault: str, layout: Layout, split: bool, at: int, named: str
) -> None:
    # Right behind the first faulty update, and not clipped: else the error has reached other parameters.
    config = settings(corpus, tmp_path / "run", layout, at if at < 4 else 2, split)
    config["optimizer"]["clip_grad"] = 0.0
    ended = pool.run(f"{HERE}:attempt_with", fault=fault, config=config)
    assert [code for code, _ in ended] == [3, 3]
    for _, said in ended:
        assert f"step {at}: " in said and named in said and "Stopped without saving" in said
    steps = [int(path.name.removeprefix("step-")) for path in (tmp_path / "run/checkpoints").glob("step-*")]
    assert sorted(steps) == list(range(1, at)), "nothing was saved after the faulty step"
