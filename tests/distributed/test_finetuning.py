"""Finetuning: the same scores on every layout, from checkpoints of any other, and through the launcher."""

from __future__ import annotations

import json

import pytest
import torch

from finetune.predict import predict
from finetune.train import main as finetune_alone
from pretrain.checkpoint import find_checkpoint, read_parameters
from tests.support.ranks import RankPool
from tests.support.runs import HEADWATER, run
from tests.unit.finetune.conftest import train
from tests.unit.finetune.test_conversion import architecture, write_run
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)
from tests.unit.finetune.test_task_runs import write_config

pytestmark = pytest.mark.distributed

LAYOUTS = [(1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 3)]
"""tensor_model_parallel_size and zero_stage on two ranks."""

OTHERS = ("multiple_choice", "tagging", "question_answering", "sft")

SHORT = ["training.train_steps=12", "schedule.kind=linear", "optimizer.layer_lr_decay=0.8"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tokenizer = train(root, "unigram", 900)
    for kind in ("bert", "gpt"):
        of = architecture(kind, 900)
        still = of.model.model_copy(update={"hidden_dropout": 0.0, "attention_dropout": 0.0})
        write_run(root / kind, type(of)(still, of.labels), tokenizer)
    return root


@pytest.fixture(scope="module")
def pool():
    with RankPool(2) as ranks:
        yield ranks


def alone(config, run_dir):
    words = [word for text in (*SHORT, f"run_dir={run_dir}") for word in ("--set", text)]
    assert finetune_alone(["--config", str(config), *words]) == 0
    return json.loads((run_dir / "results.json").read_text())


def scores(results):
    return {name: value for name, value in results.items() if isinstance(value, float)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", *OTHERS])
def test_every_layout_has_the_scores_of_one_rank(kind, models, pool, tmp_path):
    config = write_config(tmp_path, models, kind)
    extra = ["task.stride=4", "task.max_question_tokens=16"] if kind == "question_answering" else []
    one = tmp_path / "one"
    words = [word for text in (*SHORT, *extra, f"run_dir={one}") for word in ("--set", text)]
    assert finetune_alone(["--config", str(config), *words]) == 0
    wanted = scores(json.loads((one / "results.json").read_text()))
    for tp, zero_stage in LAYOUTS if kind == "classification" else [(1, 1), (2, 3)]:
        run_dir = tmp_path / f"tp{tp}-zero{zero_stage}"
        settings = [
            *(*SHORT, *extra, f"run_dir={run_dir}"),
            *(f"parallel.tensor_model_parallel_size={tp}", f"parallel.zero_stage={zero_stage}"),
            "batch.micro_batch_size=4",
        ]
        for results in pool.run("tests.support.finetuning:finetune", config=str(config), overrides=settings):
            assert scores(results) == pytest.approx(wanted, rel=2e-3), (tp, zero_stage)


def test_a_checkpoint_of_another_layout_starts_and_goes_on(models, pool, tmp_path):
    config = write_config(tmp_path, models, "classification")
    first, second = tmp_path / "first", tmp_path / "second"
    split = ["parallel.tensor_model_parallel_size=2", "parallel.zero_stage=3"]
    pool.run(
        "tests.support.finetuning:finetune",
        config=str(config),
        overrides=[*SHORT, *split, f"run_dir={first}"],
    )
    # Its weights, cut in two, are where another run on one rank starts from.
    wanted = alone(config, tmp_path / "from-one")
    words = [
        word for text in (*SHORT, f"run_dir={second}", f"pretrained={first}") for word in ("--set", text)
    ]
    assert finetune_alone(["--config", str(config), *words]) == 0
    assert json.loads((second / "results.json").read_text())["loss"] < wanted["loss"]


def test_pretrained_weights_of_any_layout_give_the_same_scores_and_answers(models, pool, tmp_path):
    """The same weights, saved whole, in tensor-parallel halves and in ZeRO 3 parts."""
    config = write_config(tmp_path, models, "classification")
    saved = {"whole": models / "bert"}
    for tp, zero_stage in [(2, 1), (1, 3)]:
        run_dir = saved[f"tp{tp}-zero{zero_stage}"] = tmp_path / f"bert-tp{tp}-zero{zero_stage}"
        for told in pool.run(
            "tests.support.finetuning:resave",
            source=str(models / "bert"),
            run_dir=str(run_dir),
            tp=tp,
            zero_stage=zero_stage,
        ):
            layout = told["topology"]
            assert (layout["tensor_model_parallel_size"], layout["zero_stage"]) == (tp, zero_stage)
            assert len([name for name in told["files"] if name.endswith(".safetensors")]) > 1
        before, after = read(models / "bert"), read(run_dir)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    found = {}
    for name, pretrained in saved.items():
        run_dir = tmp_path / f"from-{name}"
        words = [
            word
            for text in (*SHORT, f"run_dir={run_dir}", f"pretrained={pretrained}")
            for word in ("--set", text)
        ]
        assert finetune_alone(["--config", str(config), *words]) == 0
        answers = tmp_path / f"{name}.jsonl"
        predict(run_dir, tmp_path / "validation.jsonl", answers, 8)
        found[name] = scores(json.loads((run_dir / "results.json").read_text())), answers.read_text()
    assert found["whole"][0]["loss"] > 0 and len(found["whole"][1].splitlines()) == 37
    assert found["tp2-zero1"] == found["tp1-zero3"] == found["whole"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "sft"])
def test_adapters_are_the_same_at_every_layout(kind, models, pool, tmp_path):
    """Scores and the adapters themselves, and a run that changes its layout midway."""
    config = write_config(tmp_path, models, kind)
    lora = [*SHORT, "lora.rank=4", "optimizer.lr=5e-3", "checkpoint.save_interval=6"]
    one = tmp_path / "one"
    words = [word for text in (*lora, f"run_dir={one}") for word in ("--set", text)]
    assert finetune_alone(["--config", str(config), *words]) == 0
    wanted, weights = scores(json.loads((one / "results.json").read_text())), read(one)
    assert any(name.endswith("lora_b") for name in weights)
    layouts = [(1, 0), (1, 2), (1, 3), (2, 1), (2, 3)]
    for tp, zero_stage in layouts if kind == "classification" else [(2, 1)]:
        run_dir = tmp_path / f"tp{tp}-zero{zero_stage}"
        layout = [
            f"parallel.tensor_model_parallel_size={tp}",
            f"parallel.zero_stage={zero_stage}",
            "training.replica_check_interval=6",
        ]
        settings = [*lora, f"run_dir={run_dir}", *layout, "batch.micro_batch_size=4"]
        for results in pool.run("tests.support.finetuning:finetune", config=str(config), overrides=settings):
            assert scores(results) == pytest.approx(wanted, rel=2e-3), (tp, zero_stage)
        found = read(run_dir)
        assert found.keys() == weights.keys()
        for name, tensor in found.items():
            # In the mean: Adam makes whole steps of gradients that are only rounding.
            apart = (tensor - weights[name]).abs().mean()
            assert apart <= 0.02 * weights[name].abs().mean(), (name, tp, zero_stage, apart)
    if kind == "sft":
        return
    # Half of it on one rank, the rest at another layout: the same adapters.
    half, other = tmp_path / "half", [*layout, "batch.micro_batch_size=4"]
    stopped = [*lora, f"run_dir={half}", "training.train_steps=6"]
    words = [word for text in stopped for word in ("--set", text)]
    assert finetune_alone(["--config", str(config), *words]) == 0
    pool.run(
        "tests.support.finetuning:finetune",
        config=str(config),
        overrides=[*lora, f"run_dir={half}", *other],
    )
    rest = read(half)
    assert all(
        torch.equal(rest[n], weights[n]) for n in rest if "lora_" not in n and not n.startswith("head.")
    )
    assert all(torch.isfinite(tensor).all() for tensor in rest.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "sft"])
def test_a_student_learns_the_same_at_every_layout(kind, models, pool, tmp_path):
    config = write_config(tmp_path, models, kind)
    one, teacher = tmp_path / "one", tmp_path / "teacher"
    words = [word for text in (*SHORT, f"run_dir={teacher}") for word in ("--set", text)]
    assert finetune_alone(["--config", str(config), *words]) == 0
    taught = [*SHORT, f"distillation.teacher={teacher}", "distillation.hidden_weight=0.5"]
    words = [word for text in (*taught, f"run_dir={one}") for word in ("--set", text)]
    assert finetune_alone(["--config", str(config), *words]) == 0
    wanted = scores(json.loads((one / "results.json").read_text()))
    for tp, zero_stage in [(1, 3), (2, 1)]:
        run_dir = tmp_path / f"tp{tp}-zero{zero_stage}"
        layout = [f"parallel.tensor_model_parallel_size={tp}", f"parallel.zero_stage={zero_stage}"]
        settings = [*taught, f"run_dir={run_dir}", *layout, "batch.micro_batch_size=4"]
        for results in pool.run("tests.support.finetuning:finetune", config=str(config), overrides=settings):
            assert scores(results) == pytest.approx(wanted, rel=2e-3), (tp, zero_stage)


def read(run_dir):
    return read_parameters(find_checkpoint(run_dir))


@pytest.mark.slow
def test_the_launcher_starts_finetuning_on_several_ranks(models, tmp_path):
    config = write_config(tmp_path, models, "classification")
    wanted = scores(alone(config, tmp_path / "alone"))
    settings = [*SHORT, f"run_dir={tmp_path / 'launched'}", "batch.micro_batch_size=8"]
    words = [word for text in settings for word in ("--set", text)]
    output = run([*HEADWATER, "launch", "local", "--nproc", "2", "--config", str(config), *words])
    assert "validation rows; see" in output
    results = json.loads((tmp_path / "launched" / "results.json").read_text())
    assert scores(results) == pytest.approx(wanted, rel=2e-3)
