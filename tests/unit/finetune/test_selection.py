"""Which checkpoints of the best evaluations stay, and what a resumed run makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune import selection as module
from finetune.config import SelectionConfig
from finetune.selection import Selection
from finetune.source import BEST, find_model
from pretrain.checkpoint.manifest import list_checkpoints, step_directory, step_of


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One rank whose checkpoints are empty directories, sound while they exist."""

    def save(_engine: object, config: Any, trainer: dict[str, int], _files: object) -> None:
        step_directory(Path(config.run_dir), trainer["step"]).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(module, "save_checkpoint", save)
    monkeypatch.setattr(module, "broadcast_from_main", lambda value: value)
    monkeypatch.setattr(module, "verify", lambda path: [] if path.exists() else [f"{path}: missing"])
    config = SimpleNamespace(model_copy=lambda update: SimpleNamespace(**update))
    topology = SimpleNamespace(is_main=True)
    return SimpleNamespace(run_dir=tmp_path, config=config, topology=topology, engine=None, extra_files={})


def kept(job: Any) -> list[int]:
    return [step_of(path) for path in list_checkpoints(job.run_dir / BEST)]


def train(job: Any, losses: dict[int, float]) -> Selection:
    """Evaluate at these steps, with a checkpoint of the run at step 8."""
    selection = Selection(SelectionConfig(metric="loss"))
    with (job.run_dir / "metrics.jsonl").open("w") as metrics:
        for step, loss in losses.items():
            metrics.write(json.dumps({"step": step, "eval/loss": loss}) + "\n")
            selection.evaluated(job, step, {"loss": loss})
            if step == 8:
                step_directory(job.run_dir, 8).mkdir(parents=True)
    return selection


def test_the_best_up_to_the_checkpoint_of_the_run_stays_until_it_is_complete(job: Any) -> None:
    selection = train(job, {2: 3.0, 4: 2.0, 8: 2.5, 10: 1.9, 14: 1.0})
    assert kept(job) == [4, 14]
    selection.settle(job)
    assert kept(job) == [14]


def test_a_run_that_was_killed_goes_on_with_the_best_from_before_its_checkpoint(job: Any) -> None:
    train(job, {2: 3.0, 4: 2.0, 8: 2.5, 14: 1.0})
    again = Selection(SelectionConfig(metric="loss"))
    again.resume(job, 8)
    assert again.best_step == 4 and kept(job) == [4]
    again.evaluated(job, 14, {"loss": 2.2})
    assert again.best_step == 4 and kept(job) == [4]


def test_where_the_best_checkpoint_is_gone_it_is_told_and_sought_from_there_on(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train(job, {4: 2.0, 8: 2.5})
    step_directory(job.run_dir / BEST, 4).rmdir()
    again = Selection(SelectionConfig(metric="loss", patience=1))
    again.resume(job, 8)
    assert again.best_step is None and not again.finished
    assert "step-00000004: missing" in capsys.readouterr().out
    again.evaluated(job, 10, {"loss": 2.2})
    assert again.best_step == 10 and kept(job) == [10]


def test_the_path_of_a_run_stands_for_its_best_checkpoint_which_is_told(
    job: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.source.find_checkpoint", lambda path: list_checkpoints(path)[-1])
    train(job, {4: 2.0, 8: 2.5})
    best = step_directory(job.run_dir / BEST, 4)
    assert find_model(job.run_dir) == best
    assert f"taking its best checkpoint, {best}" in capsys.readouterr().err
