"""Configuration: loading, overrides, every problem at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config import ConfigError, dump_yaml, load_config
from pretrain.config.deepspeed import deepspeed_config
from pretrain.config.derive import (
    data_parallel_size,
    gradient_accumulation_steps,
    padded_vocab_size,
)

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = REPOSITORY / "configs" / "gpt" / "tiny.yaml"


def problems(*overrides: str, world_size: int | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(TINY, overrides, world_size)
    return caught.value.problems


def test_overrides_are_read_as_yaml_and_typed() -> None:
    config = load_config(
        TINY,
        ["optimizer.lr=3e-4", "data.corpora.0.path=/x y", "deepspeed.aio.b=[1, 2]", "data.tokenizer=null"],
    )
    assert config.optimizer.lr == 3e-4
    assert config.data.corpora[0].path == "/x y"
    assert config.deepspeed == {"aio": {"b": [1, 2]}}
    assert config.data.tokenizer is None


def test_dumped_config_loads_back(tmp_path: Path) -> None:
    config = load_config(TINY, ["optimizer.eps=1e-8"])
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_all_unknown_keys_are_reported_with_the_nearest_key() -> None:
    found = problems(
        "model.hiden_size=3", "batch.micro_bach_size=3", "modle.x=1", "data.corpora.0.wieght=2.0"
    )
    assert "model.hiden_size: unknown key; did you mean 'hidden_size'?" in found
    assert "batch.micro_bach_size: unknown key; did you mean 'micro_batch_size'?" in found
    assert "modle: unknown key; did you mean 'model'?" in found
    assert "data.corpora.0.wieght: unknown key; did you mean 'weight'?" in found
    assert len(found) == 4


def test_a_key_of_the_other_model_is_unknown() -> None:
    assert problems("model.nsp_weight=1.0")[0].startswith("model.nsp_weight: unknown key")
    assert load_config(TINY, ["model.kind=bert", "model.nsp_weight=2.0"]).model.kind == "bert"


def test_all_cross_section_problems_at_once() -> None:
    found = problems(
        "parallel.tensor_model_parallel_size=3",
        "batch.seq_length=512",
        "schedule.lr_warmup_steps=999",
        world_size=4,
    )
    text = "\n".join(found)
    for expected in (
        "num_attention_heads",
        "ffn_hidden_size",
        "max_position_embeddings",
        "lr_warmup_steps",
        "number of ranks: 4",
    ):
        assert expected in text


@pytest.mark.parametrize(
    "text", ["nonsense", "=3", "model.kind.deeper=1", "data.corpora.7.path=x", "batch.seq_length=[1"]
)
def test_malformed_overrides(text: str) -> None:
    assert f"--set {text!r}" in problems(text)[0]


def test_duplicate_keys_and_bad_yaml_name_the_file(tmp_path: Path) -> None:
    for content, expected in (
        ("a: 1\na: 2\n", "given twice"),
        ("a: [", "not valid YAML"),
        ("{{ model }}: 1\n", "unhashable key"),
        ("- 1\n", "mapping"),
    ):
        path = tmp_path / "run.yaml"
        path.write_text(content)
        with pytest.raises(ConfigError, match=expected) as caught:
            load_config(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "absent.yaml")


def test_types_are_strict() -> None:
    assert "optimizer.lr" in problems("optimizer.lr=fast")[0]
    assert "training.train_steps" in problems("training.train_steps=1.5")[0]
    assert "batch.micro_batch_size" in problems("batch.micro_batch_size=true")[0]


def test_derived_numbers() -> None:
    config = load_config(TINY, ["parallel.tensor_model_parallel_size=2"], world_size=4)
    assert data_parallel_size(config, 4) == 2
    assert gradient_accumulation_steps(config, 4) == 16 // (4 * 2)
    assert padded_vocab_size(config.model.model_copy(update={"vocab_size": 8193})) == 8320


def test_generated_deepspeed_config() -> None:
    config = load_config(
        TINY,
        ["parallel.zero_stage=2", "precision=bf16", "deepspeed.zero_optimization.reduce_bucket_size=1000"],
        2,
    )
    generated = deepspeed_config(config, 2)
    assert generated["train_batch_size"] == 16
    assert generated["gradient_accumulation_steps"] == 2
    assert generated["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000}
    assert generated["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert generated["timers"] == {
        "throughput": {"enabled": False}
    }  # it waits for the GPU, twice a micro-batch


@pytest.mark.parametrize(
    "text",
    [
        "deepspeed.train_batch_size=3",
        "deepspeed.zero_optimization.stage=3",
        "deepspeed.fp16.enabled=true",
        "deepspeed.optimizer.type=Adam",
    ],
)
def test_contradicting_deepspeed_keys_are_refused(text: str) -> None:
    key = text.partition("=")[0]
    assert any(
        problem.startswith(key.rsplit(".", 1)[0]) or problem.startswith(key)
        for problem in problems(text, world_size=2)
    )
