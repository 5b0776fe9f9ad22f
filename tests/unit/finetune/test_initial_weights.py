"""Continued pretraining: a run starts from another run's weights, and only from those of its own model."""

from __future__ import annotations

import pytest
import torch

from finetune.single_rank import single_rank
from finetune.source import read_source
from pretrain.checkpoint import CheckpointError
from pretrain.config import ConfigError
from pretrain.config.load import parse_section
from pretrain.config.schema import RunConfig
from pretrain.initial_weights import load_initial_weights
from pretrain.models import build_model
from tests.unit.finetune.test_conversion import architecture, write_run


def run_config(run_dir, initial, of, **model):
    sections = {
        "run_dir": str(run_dir),
        "initial_weights": str(initial),
        "model": of.model.model_dump() | model,
        "batch": {"micro_batch_size": 1, "global_batch_size": 1, "seq_length": 16},
        "optimizer": {"lr": 1e-3},
        "precision": "fp32",
        "data": {"corpora": [{"name": "none", "path": "none"}]},
        "training": {"train_steps": 2},
    }
    return parse_section(RunConfig, sections, "test")


@pytest.mark.parametrize("kind", ["gpt", "llama", "bert", "megatron-mlm"])
def test_a_run_starts_with_the_weights_unless_it_has_its_own(kind, tokenizer_model, tmp_path):
    of = architecture(kind, 900)
    write_run(tmp_path / "first", of, tokenizer_model)
    wanted = read_source(tmp_path / "first").parameters
    config = run_config(tmp_path / "run", tmp_path / "first", of, hidden_dropout=0.3)
    with single_rank() as topology:
        model = build_model(config)
        load_initial_weights(config, model, topology, tokenizer_model)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, wanted[name]), name
    write_run(tmp_path / "run", of, tokenizer_model)  # it has a checkpoint now, which the loop loads
    with single_rank() as topology:
        fresh = build_model(config)
        before = {name: p.detach().clone() for name, p in fresh.named_parameters()}
        load_initial_weights(config, fresh, topology, tokenizer_model)
        for name, parameter in fresh.named_parameters():
            assert torch.equal(parameter, before[name]), name


def test_another_model_or_tokenizer_is_refused(tokenizer_model, tmp_path):
    of = architecture("bert", 900)
    write_run(tmp_path / "first", of, tokenizer_model)
    other = tmp_path / "other.model"
    other.write_bytes(tokenizer_model.read_bytes() + b"x")
    with single_rank() as topology:
        config = run_config(tmp_path / "run", tmp_path / "first", of)
        model = build_model(config)
        with pytest.raises(ConfigError, match=r"initial_weights: the model in .* reads another tokenizer"):
            load_initial_weights(config, model, topology, other)
        config = run_config(tmp_path / "run", tmp_path / "first", of, num_layers=3, norm_position="pre")
        with pytest.raises(ConfigError, match=r"norm_position .there 'post', here 'pre'., model.num_layers"):
            load_initial_weights(config, model, topology, tokenizer_model)
        config = run_config(tmp_path / "run", tmp_path / "nowhere", of)
        with pytest.raises(CheckpointError, match=r"initial_weights: .*nowhere: no usable checkpoint"):
            load_initial_weights(config, model, topology, tokenizer_model)
