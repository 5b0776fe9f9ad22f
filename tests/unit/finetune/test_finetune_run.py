"""A whole finetuning run in this process: it learns, resumes, finishes once, and its checkpoint exports."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial

import pytest
import torch
import yaml
from transformers import pipeline

from data_tools.errors import DataError
from data_tools.tokenizer import load_tokenizer
from finetune import session, start, train
from finetune.config import load_finetune_config, with_model
from finetune.export_hf import export
from finetune.source import read_source
from finetune.text import tokenizer_files
from pretrain.checkpoint import CheckpointError, find_checkpoint
from pretrain.config import ConfigError
from pretrain.config.model import BertModelConfig, GPTModelConfig
from pretrain.parallel.topology import leave_process_group
from tests.unit.finetune.test_conversion import architecture, write_run


@pytest.fixture(autouse=True)
def own_process():
    """A run takes over signals, and leaves its groups only when it ends well; other tests need both back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.set_wakeup_fd(-1)  # the thread of an earlier run would end this process on a test's own signal
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)
    if torch.distributed.is_initialized():
        leave_process_group()


def write_rows(path, count, first=0):
    rows = []
    for number in range(first, first + count):
        good = number % 3 == 0
        rows.append({"review": f"item {number} is {'true' if good else 'false'} here", "good": good})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def config(tokenizer_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("finetune")
    write_run(
        root / "bert", architecture("bert", load_tokenizer(tokenizer_model).vocab_size), tokenizer_model
    )
    content = {
        "run_dir": str(root / "run"),
        "seed": 5,
        "pretrained": str(root / "bert"),
        "task": {"kind": "classification"},
        "data": {
            "train": write_rows(root / "train.jsonl", 50),
            "validation": write_rows(root / "validation.jsonl", 13, first=50),
            "text": "review",
            "label": "good",
        },
        "batch": {"micro_batch_size": 4, "global_batch_size": 8, "seq_length": 24},
        "optimizer": {"lr": 3e-3},
        "schedule": {"kind": "constant"},
        "precision": "fp32",
        "training": {"train_steps": 40, "log_interval": 20, "eval_interval": 20},
    }
    path = root / "finetune.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(config, *overrides):
    words = [word for text in overrides for word in ("--set", text)]
    return train.main(["--config", str(config), *words])


def test_it_learns_resumes_finishes_once_and_exports(config, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(config, f"run_dir={whole}") == 0
    results = json.loads((whole / "results.json").read_text())
    assert results["n"] == 13 and results["labels"] == ["false", "true"]
    assert results["majority_class_accuracy"] == pytest.approx(9 / 13)
    assert results["accuracy"] == 1.0

    assert run(config, f"run_dir={parts}", "training.train_steps=15") == 0
    assert run(config, f"run_dir={parts}") == 0
    first, second = read_source(whole), read_source(parts)
    for name, tensor in first.parameters.items():
        assert torch.equal(tensor, second.parameters[name]), name

    rows = (whole / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert run(config, f"run_dir={whole}") == 0
    assert "already complete" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_text() == rows

    export(whole, tmp_path / "exported")
    classify = pipeline("text-classification", model=str(tmp_path / "exported"), device="cpu")
    texts = ["item 9 is true here", "item 8 is false here"]
    assert [answer["label"] for answer in classify(texts)] == ["true", "false"]


def test_pretrained_weights_are_loaded_unless_from_scratch(config, tmp_path):
    before = read_source(config.parent / "bert").parameters["encoder.pooler.weight"]
    still = ["training.train_steps=1", "optimizer.lr=1e-30"]
    assert run(config, f"run_dir={tmp_path / 'a'}", *still) == 0
    assert run(config, f"run_dir={tmp_path / 'b'}", *still, "from_scratch=true") == 0
    loaded, random = (read_source(tmp_path / name).parameters["encoder.pooler.weight"] for name in "ab")
    assert torch.allclose(loaded, before) and not torch.allclose(random, before, atol=1e-2)
    with pytest.raises(ConfigError, match="from_scratch"):
        run(config, f"run_dir={tmp_path / 'b'}", *still)


def test_the_pretrained_checkpoint_may_go_away_once_its_weights_are_read(config, tmp_path, monkeypatch):
    """Those of a run that is still in training do."""
    pretrained, moved = tmp_path / "bert", tmp_path / "moved"
    shutil.copytree(config.parent / "bert", pretrained)
    begin, build = session.run, start.build_model
    settings = [f"pretrained={pretrained}", "training.train_steps=2", "checkpoint.save_interval=1"]

    def without(act, *arguments):
        pretrained.rename(moved)
        return act(*arguments)

    monkeypatch.setattr(session, "run", partial(without, begin))
    assert run(config, f"run_dir={tmp_path / 'run'}", *settings) == 0
    (name,) = tokenizer_files(find_checkpoint(moved))
    kept = find_checkpoint(tmp_path / "run") / name
    assert kept.read_bytes() == (find_checkpoint(moved) / name).read_bytes()

    moved.rename(pretrained)
    monkeypatch.setattr(session, "build_model", partial(without, build))
    with pytest.raises(CheckpointError, match=r"^pretrained: .*bert.* was removed while the data was read"):
        run(config, f"run_dir={tmp_path / 'other'}", *settings)


def test_other_labels_are_refused_and_those_of_the_run_stay(config, tmp_path):
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, 50)
    data = [f"data.train={rows}", f"data.validation={rows}"]
    still = ["training.train_steps=1", f"run_dir={tmp_path / 'run'}", *data]
    assert run(config, *still) == 0
    before = (tmp_path / "run" / "labels.json").read_text()
    rows.write_text(rows.read_text().replace('"good": false', '"good": "never"'))
    with pytest.raises(
        CheckpointError, match="has the labels 'false', 'true', data.train has 'never', 'true'"
    ):
        run(config, *still, "training.train_steps=2")
    assert (tmp_path / "run" / "labels.json").read_text() == before


def test_a_masked_lm_alone_gives_all_but_head_and_pooler(config, tokenizer_model, tmp_path):
    of = architecture("megatron-mlm", load_tokenizer(tokenizer_model).vocab_size)
    write_run(tmp_path / "mlm", of, tokenizer_model)
    still = ["training.train_steps=1", "optimizer.lr=1e-30"]
    assert run(config, f"run_dir={tmp_path / 'run'}", f"pretrained={tmp_path / 'mlm'}", *still) == 0
    before, after = (read_source(tmp_path / name).parameters for name in ("mlm", "run"))
    assert "encoder.pooler.weight" not in before and after["encoder.pooler.weight"].any()
    for name in before.keys() & after.keys():
        assert torch.allclose(after[name], before[name]), name


def test_an_unknown_validation_label_stops_before_training(config, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"review": "fine", "good": true}\n{"review": "other", "good": "maybe"}\n')
    with pytest.raises(DataError, match="bad.jsonl:2: the label 'maybe'"):
        run(config, f"data.validation={bad}", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


SIZES = {
    "vocab_size": 900,
    "num_layers": 1,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 2,
}


def test_what_does_not_fit_the_checkpoint_is_told_at_once(config):
    wide = load_finetune_config(config, ["batch.seq_length=64", "parallel.tensor_model_parallel_size=4"])
    model = BertModelConfig(kind="bert", max_position_embeddings=48, **SIZES)
    with pytest.raises(ConfigError) as error:
        with_model(wide, model)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "batch.seq_length",
        "parallel.tensor_model_parallel_size",
    ]
    with pytest.raises(ConfigError, match="needs a bert"):
        with_model(wide, GPTModelConfig(kind="gpt", max_position_embeddings=48, **SIZES))


def test_config_problems_name_the_key(config):
    with pytest.raises(ConfigError, match=r"^pretrained: /nowhere/run does not exist"):
        run(config, "pretrained=/nowhere/run")
    with pytest.raises(ConfigError, match="task.kind|task"):
        load_finetune_config(config, ["task.kind=poetry"])
    with pytest.raises(ConfigError, match="pretraned: unknown key; did you mean 'pretrained'"):
        load_finetune_config(config, ["pretraned=x"])
    with pytest.raises(ConfigError, match="global_batch_size"):
        load_finetune_config(config, ["batch.global_batch_size=6"], world_size=1)
