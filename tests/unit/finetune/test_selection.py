"""Which checkpoints of the best evaluations stay, and what a resumed run makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune import selection as module
from finetune.config import ClassificationConfig, FinetuneConfig, SelectionConfig
from finetune.selection import Selection
from finetune.source import BEST, find_model
from pretrain.checkpoint import CheckpointError
from pretrain.checkpoint.manifest import list_checkpoints, step_directory, step_of
from pretrain.checkpoint.publish import prune
from pretrain.config import ConfigError, dump_yaml
from pretrain.config.identity import check_run_directory
from pretrain.config.schema import CheckpointConfig


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One rank whose checkpoints are empty directories, sound while they exist."""

    def save(_engine: object, config: Any, trainer: dict[str, int], _files: object) -> None:
        directory = step_directory(Path(config.run_dir), trainer["step"])
        directory.mkdir(parents=True, exist_ok=True)
        prune(Path(config.run_dir), directory, config.checkpoint.keep_last)

    monkeypatch.setattr(module, "save_checkpoint", save)
    monkeypatch.setattr(module, "broadcast_from_main", lambda value: value)
    monkeypatch.setattr(module, "verify", lambda path: [] if path.exists() else [f"{path}: missing"])
    config = SimpleNamespace(
        checkpoint=CheckpointConfig(save_interval=8), model_copy=lambda update: SimpleNamespace(**update)
    )
    topology = SimpleNamespace(is_main=True)
    return SimpleNamespace(run_dir=tmp_path, config=config, topology=topology, engine=None, extra_files={})


def kept(job: Any) -> list[int]:
    return [step_of(path) for path in list_checkpoints(job.run_dir / BEST)]


def train(job: Any, losses: dict[int, float], saved_at: int = 8) -> Selection:
    """Evaluate at these steps; the run's checkpoint of step 8 is there after step `saved_at`."""
    selection = Selection(SelectionConfig(metric="loss"))
    with (job.run_dir / "metrics.jsonl").open("w") as metrics:
        for step, loss in losses.items():
            metrics.write(json.dumps({"step": step, "eval/loss": loss}) + "\n")
            selection.evaluated(job, step, {"loss": loss})
            if step == saved_at:
                step_directory(job.run_dir, 8).mkdir(parents=True)
    return selection


def resumed(job: Any, step: int, **wanted: Any) -> Selection:
    selection = Selection(SelectionConfig(metric="loss", **wanted))
    selection.resume(job, step)
    return selection


def test_the_best_up_to_the_checkpoint_of_the_run_stays_until_it_is_complete(job: Any) -> None:
    selection = train(job, {2: 3.0, 4: 2.0, 8: 2.5, 10: 1.9, 12: 1.5, 14: 1.0})
    assert kept(job) == [4, 14]
    selection.settle(job)
    assert kept(job) == [14]


def test_the_best_at_a_checkpoint_that_is_still_being_written_stays(job: Any) -> None:
    train(job, {2: 3.0, 8: 2.5, 10: 1.9, 14: 1.0}, saved_at=14)
    assert kept(job) == [8, 14]
    assert resumed(job, 8).best_step == 8


def test_a_run_that_was_killed_goes_on_with_the_best_from_before_its_checkpoint(job: Any) -> None:
    train(job, {2: 3.0, 4: 2.0, 8: 2.5, 10: 1.5, 14: 1.0})
    again = resumed(job, 8)
    assert again.best_step == 4
    again.evaluated(job, 10, {"loss": 2.2})
    assert again.best_step == 4
    again.evaluated(job, 12, {"loss": 1.9})
    assert kept(job) == [4, 12]  # that of step 14, of the killed attempt, is gone
    again.settle(job)
    assert kept(job) == [12]


def test_where_the_best_checkpoint_is_gone_it_is_told_and_the_best_of_the_others_counts(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train(job, {4: 2.0, 8: 2.5})
    step_directory(job.run_dir / BEST, 4).rmdir()
    again = resumed(job, 8, patience=9)
    assert again.best_step is None and "step-00000004: missing" in capsys.readouterr().out
    again.evaluated(job, 10, {"loss": 2.2})
    with (job.run_dir / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 10, "eval/loss": 2.2}) + "\n")
    once_more = resumed(job, 12)
    assert once_more.best_step == 10
    once_more.evaluated(job, 14, {"loss": 2.4})
    assert once_more.best_step == 10 and kept(job) == [10]


def test_patience_goes_on_where_it_was(job: Any) -> None:
    train(job, {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.5})
    again = resumed(job, 8, patience=3)
    assert not again.finished
    again.evaluated(job, 10, {"loss": 2.1})
    assert again.finished


def test_the_path_of_a_run_stands_for_its_best_checkpoint_which_is_told(
    job: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.source.find_checkpoint", lambda path: path)
    train(job, {4: 2.0, 8: 2.5})
    best = step_directory(job.run_dir / BEST, 4)
    assert find_model(job.run_dir) == best
    assert f"taking its best checkpoint, {best}" in capsys.readouterr().err


@pytest.mark.parametrize(("config", "taken"), [("seed: 1", 8), ("selection: {metric: loss}", 4)])
def test_what_an_earlier_run_left_as_its_best_is_not_taken_for_a_run_without_selection(
    job: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str, taken: int
) -> None:
    """Its checkpoints and metrics were removed, `best` was not."""
    newest = {job.run_dir: step_directory(job.run_dir, 8)}
    monkeypatch.setattr("finetune.source.find_checkpoint", lambda path: newest.get(path, path))
    train(job, {4: 2.0, 8: 2.5})
    (job.run_dir / "config.yaml").write_text(config)
    assert step_of(find_model(job.run_dir)) == taken
    assert ("is what an earlier run left: taking" in capsys.readouterr().err) == (taken == 8)


def test_a_run_does_not_go_on_without_its_selection(tmp_path: Path) -> None:
    def config(**more: Any) -> FinetuneConfig:
        sections = {
            "task": {"kind": "classification"},
            "data": {"train": "t.jsonl", "validation": "v.jsonl"},
            "batch": {"micro_batch_size": 1, "global_batch_size": 1, "seq_length": 8},
            "optimizer": {"lr": 1e-3},
            "schedule": {"kind": "constant"},
            "training": {"train_steps": 2, "eval_interval": 1},
        }
        return ClassificationConfig.model_validate(
            {"run_dir": str(tmp_path), "pretrained": "p", "precision": "fp32", **sections, **more}
        )

    before = config(selection={"metric": "loss"})
    (tmp_path / "config.yaml").write_text(dump_yaml(before))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    check_run_directory(before)
    with pytest.raises(ConfigError, match=r"selection.metric \(there 'loss', now None\)"):
        check_run_directory(config())


def test_a_damaged_best_checkpoint_is_an_error_that_says_what_to_name(job: Any) -> None:
    train(job, {4: 2.0})
    with pytest.raises(CheckpointError, match=r"no manifest.json.*; name a directory in"):
        find_model(job.run_dir)
