"""Without dropout a save beside the training has its probe from the next step: no forward pass of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import safetensors.numpy

from pretrain.checkpoint.manifest import list_checkpoints, read_manifest
from pretrain.checkpoint.probe import PROBE
from tests.support.ranks import RankPool
from tests.support.runs import trajectory
from tests.support.training import Layout, tiny_config

STEPS, SAVE_INTERVAL = 6, 2
LAYOUTS = {
    "z3-dp2": Layout(1, 3),
    "z1-tp2-bf16": Layout(2, 1, "bf16"),
    "z2-dp2-fp16": Layout(1, 2, "fp16"),
    "z0-tp2": Layout(2, 0),
}
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as two:
        yield two


def settings(
    corpus: Path, run_dir: Path, layout: Layout, dropout: float = 0.0, kind: str = "gpt"
) -> dict[str, Any]:
    model = {"hidden_dropout": dropout, "attention_dropout": dropout}
    config: dict[str, Any] = tiny_config(kind, layout, str(run_dir), model=model).model_dump(mode="json")
    config["data"] = {"corpora": [{"name": "corpus", "path": str(corpus)}]}
    config["checkpoint"] = {"save_interval": SAVE_INTERVAL, "keep_last": 9}
    config["training"] = {"train_steps": STEPS, "log_interval": 1}
    return config


def watched(
    config: dict[str, Any], first_step: int = 1, planted: dict[int, tuple[int, float]] | None = None
) -> dict[str, Any]:
    """On every rank: an attempt; its exit code, forward passes in evaluation mode, and first micro-batches.

    `first` has step -> (tokens of its first micro-batch, their loss in the training's forward pass).
    """
    from pretrain import loop
    from pretrain.parallel.zero import Engine
    from tests.support.data_chain import attempt

    found: dict[str, Any] = {"extra": 0, "first": {}}
    forward, train_step = Engine.forward, loop.train_step

    def counted(self: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        found["extra"] += not self.model.training
        return forward(self, batch)

    def recorded(engine: Any, micro_batches: Any, *arguments: Any) -> Any:
        result = train_step(engine, micro_batches, *arguments)
        tokens = micro_batches[0]["tokens"].tolist()
        found["first"][first_step + len(found["first"])] = (tokens, result.first_loss())
        return result

    with patch.object(Engine, "forward", counted), patch.object(loop, "train_step", recorded):
        found["code"] = attempt(config, first_step, planted)
    return found


def probes(run_dir: Path) -> dict[int, tuple[list[list[int]], float]]:
    """By step: tokens and loss of the probe of a checkpoint."""
    return {
        int(directory.name[5:]): (
            safetensors.numpy.load_file(directory / PROBE)["tokens"].tolist(),
            read_manifest(directory)["probe_loss"],
        )
        for directory in list_checkpoints(run_dir)
    }


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("z3-dp2", "z1-tp2-bf16") else pytest.param(name, marks=pytest.mark.slow)
        for name in LAYOUTS
    ],
)
def test_a_save_takes_its_probe_from_the_next_step(
    pool: RankPool, corpus: Path, tmp_path: Path, name: str
) -> None:
    config = settings(corpus, tmp_path / "run", LAYOUTS[name])
    found = pool.run(f"{__name__}:watched", config=config)
    assert [rank["code"] for rank in found] == [0, 0]
    assert [rank["extra"] for rank in found] == [1, 1]  # for the last checkpoint, behind which no step comes
    first, saved = found[0]["first"], probes(tmp_path / "run")
    assert sorted(saved) == [2, 4, 6]
    assert saved[2] == first[3] and saved[4] == first[5]
    assert saved[6][0] == first[6][0] and saved[6][1] < first[6][1]  # the same batch, learned from
    # The load compares the probe loss, and all goes on bit for bit.
    whole = trajectory(tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
    again = pool.run(f"{__name__}:watched", config=config, first_step=3)
    assert [rank["code"] for rank in again] == [0, 0]
    assert [rank["extra"] for rank in again] == [2, 2]  # one by the load
    assert trajectory(tmp_path / "run") == whole and probes(tmp_path / "run") == saved


@pytest.mark.parametrize("kind", ["gpt", "bert", "llama"])
def test_another_layout_computes_the_loss_that_a_step_had(
    pool: RankPool, corpus: Path, tmp_path: Path, kind: str
) -> None:
    run_dir = tmp_path / "run"
    config = settings(corpus, run_dir, Layout(1, 3), kind=kind)
    assert pool.run(f"{__name__}:watched", config=config)[0]["code"] == 0
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")
    before, saved = trajectory(run_dir), probes(run_dir)
    config = settings(corpus, run_dir, Layout(2, 1), kind=kind)
    found = pool.run(f"{__name__}:watched", config=config, first_step=5)
    assert [(rank["code"], rank["extra"]) for rank in found] == [(0, 2)] * 2
    losses = [row["loss"] for row in trajectory(run_dir)]
    assert losses == pytest.approx([row["loss"] for row in before], rel=1e-5)
    assert found[0]["first"][5][1] == pytest.approx(saved[4][1], rel=1e-5)


def test_a_bad_step_leaves_the_probe_to_the_one_after_it(
    pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    """Its update is left out, so the weights are still the saved ones."""
    config = settings(corpus, tmp_path / "run", Layout(1, 1))
    (main, other) = pool.run(f"{__name__}:watched", config=config, planted={3: (0, float("nan"))})
    assert (main["code"], main["extra"]) == (other["code"], other["extra"]) == (0, 1)
    assert main["first"][3][1] != main["first"][3][1]  # not a number
    assert probes(tmp_path / "run")[2] == main["first"][4]


def test_with_dropout_each_save_computes_its_probe(pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    config = settings(corpus, tmp_path / "run", Layout(1, 1), dropout=0.1)
    found = pool.run(f"{__name__}:watched", config=config)
    assert [rank["extra"] for rank in found] == [3, 3]
    first, saved = found[0]["first"], probes(tmp_path / "run")
    assert all(saved[step][0] == first[step][0] for step in (2, 4, 6))
