"""A student's losses against their formulas, and runs that learn from a teacher."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from finetune.distillation import distance
from finetune.source import read_source
from pretrain.checkpoint import CheckpointError
from pretrain.config import ConfigError
from tests.unit.finetune.test_conversion import architecture, write_run
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)
from tests.unit.finetune.test_task_runs import models, run, write_config  # noqa: F401

STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def losses(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def still(tokenizer_model, tmp_path_factory):
    """Models without dropout, so that a model is its own best student."""
    root = tmp_path_factory.mktemp("still")
    for kind in ("bert", "gpt"):
        of = architecture(kind, 900)
        write_run(
            root / kind, dataclasses.replace(of, model=of.model.model_copy(update=STILL)), tokenizer_model
        )
    return root


def test_the_distance_is_the_formula():
    rng = np.random.default_rng(0)
    mine, theirs = rng.normal(size=(2, 5, 7))
    mask, t = np.array([1.0, 0.0, 1.0, 0.5, 1.0]), 3.0

    def softmax(values):
        return np.exp(values / t) / np.exp(values / t).sum(-1, keepdims=True)

    p, q = softmax(theirs), softmax(mine)
    wanted = t**2 * ((p * np.log(p / q)).sum(-1) * mask).sum()
    found = distance(*(torch.from_numpy(a) for a in (mine, theirs, mask)), t)
    assert float(found) == pytest.approx(wanted)
    assert float(distance(torch.from_numpy(mine), torch.from_numpy(mine), torch.from_numpy(mask), t)) == 0.0


@pytest.mark.parametrize("kind", ["classification", "tagging", "sft"])
def test_a_model_is_its_own_best_teacher_and_another_one_teaches(kind, still, tmp_path):
    config = write_config(tmp_path, still, kind)
    base = [f"pretrained={still / ('gpt' if kind == 'sft' else 'bert')}", "training.log_interval=1"]
    teacher = tmp_path / "teacher"
    assert run(config, *base, f"run_dir={teacher}", "training.train_steps=40") == 0
    taught = [f"distillation.teacher={teacher}", "distillation.hidden_weight=1.0"]
    itself = [f"pretrained={teacher}", f"run_dir={tmp_path / 'itself'}", "training.train_steps=1"]
    assert run(config, *base, *taught, *itself) == 0
    (row,) = losses(tmp_path / "itself")
    assert row["logits_loss"] == pytest.approx(0.0, abs=1e-6)
    assert row["hidden_loss"] == pytest.approx(0.0, abs=1e-8)
    task_loss = row["lm_loss" if kind == "sft" else "task_loss"]
    assert row["loss"] == pytest.approx(0.5 * task_loss, rel=1e-5)
    # Of the teacher's answers alone, without a label, a smaller student learns the task.
    wanted = read_source(teacher)
    small = wanted.architecture.model.model_copy(update={"num_layers": 1}).model_dump(exclude_none=True)
    own = ["from_scratch=true", *(f"model.{key}={json.dumps(value)}" for key, value in small.items())]
    alone = ["distillation.logits_weight=1.0", f"run_dir={tmp_path / 'student'}", "optimizer.lr=3e-3"]
    assert run(config, *base, *taught[:1], *own, *alone, "training.train_steps=60") == 0
    rows = losses(tmp_path / "student")
    assert np.mean([r["logits_loss"] for r in rows[-5:]]) < 0.5 * np.mean(
        [r["logits_loss"] for r in rows[:3]]
    )
    student = read_source(tmp_path / "student")
    assert student.architecture.model.num_layers == 1 and student.parameters.keys() < wanted.parameters.keys()
    results = json.loads((tmp_path / "student" / "results.json").read_text())
    score, least = {"classification": ("accuracy", 0.8), "tagging": ("accuracy", 0.8)}.get(kind, (None, 0))
    assert results["perplexity"] < 3.0 if score is None else results[score] > least


def test_teachers_that_do_not_fit_are_told(models, tmp_path, tokenizer_model):  # noqa: F811
    config = write_config(tmp_path, models, "classification")
    with pytest.raises(
        ConfigError, match="is a model for pretraining, the run's task.kind is classification"
    ):
        run(config, f"distillation.teacher={models / 'bert'}")
    of = architecture("classifier", 900)
    write_run(tmp_path / "classifier", of, tokenizer_model)
    with pytest.raises(ConfigError, match="has the labels 'down', 'up'; data.train has 'fruit', 'tool'"):
        run(config, f"distillation.teacher={tmp_path / 'classifier'}")
    wide = dataclasses.replace(
        of, labels=("fruit", "tool"), model=of.model.model_copy(update={"hidden_size": 64})
    )
    write_run(tmp_path / "wide", wide, tokenizer_model)
    with pytest.raises(ConfigError, match="has hidden_size 64, the student 32: set hidden_weight: 0"):
        run(config, f"distillation.teacher={tmp_path / 'wide'}", "distillation.hidden_weight=1.0")
    with pytest.raises(ConfigError, match="distillation: not for task.kind: regression"):
        run(write_config(tmp_path, models, "regression"), "distillation.teacher=x")
    with pytest.raises(CheckpointError, match=r"distillation.teacher: .*nowhere: no usable checkpoint"):
        run(write_config(tmp_path, models, "classification"), f"distillation.teacher={tmp_path / 'nowhere'}")
    assert not (tmp_path / "run").exists()
