"""The shipped model shapes have the sizes that were published, and those of transformers' classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from finetune.kinds import Architecture, kind_of
from pretrain.config import load_config
from pretrain.config.derive import padding_parameters, parameter_count

CONFIGS = Path(__file__).parents[3] / "configs"

PUBLISHED = {
    "gpt/125m": (125e6, 50257),
    "gpt/350m": (350e6, 50257),
    "gpt/1b3": (1.3e9, 50257),
    "gpt/7b": (6.7e9, 50257),
    "gpt/13b": (13.0e9, 50257),
    "gpt/175b": (175.0e9, 50257),
    "gpt/llama-1b": (1.1e9, 32000),
    "gpt/llama-7b": (6.7e9, 32000),
    "gpt/llama-8b": (8.03e9, 128256),
    "bert/tiny": (4.4e6, 30522),
    "bert/base": (110e6, 30522),
    "bert/large": (340e6, 30522),
}
"""Parameters as printed where the config says, and the vocabulary they were counted with. BERT-Tiny: Turc et
al., 2019, table 1."""

EXACT = {"gpt/llama-1b": 1_100_048_384, "gpt/llama-7b": 6_738_415_616, "gpt/llama-8b": 8_030_261_248}
"""Of the files that the authors released (TinyLlama 1.1B, LLaMA 7B, Llama 3 8B)."""


def counted(name: str):
    """The model section with the published vocabulary, and our count without padded rows."""
    vocab_size = PUBLISHED[name][1]
    model = load_config(CONFIGS / f"{name}.yaml", [f"model.vocab_size={vocab_size}"]).model
    return model, parameter_count(model) - padding_parameters(model)


def test_every_shape_is_checked():
    shipped = {f"{p.parent.name}/{p.stem}" for kind in ("gpt", "bert") for p in (CONFIGS / kind).glob("*")}
    assert shipped - PUBLISHED.keys() == {"gpt/tiny", "gpt/llama-tiny"}  # of no paper


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number(name):
    published, _ = PUBLISHED[name]
    model, count = counted(name)
    assert count == EXACT.get(name, count)
    assert count == pytest.approx(published, rel=0.02)  # papers round


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_count_of_transformers(name):
    model, count = counted(name)
    kind = kind_of(Architecture(model))
    with torch.device("meta"):
        theirs = getattr(transformers, kind.hf_class)(kind.hf_config(Architecture(model)))
    assert count == sum(p.numel() for p in theirs.parameters())


def test_gpt2_small():
    """124,439,808 parameters: GPT-2's released file, GPT-3's smallest with half the positions."""
    model = counted("gpt/125m")[0].model_copy(update={"max_position_embeddings": 1024})
    assert parameter_count(model) - padding_parameters(model) == 124_439_808
