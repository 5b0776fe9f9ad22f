"""Memory formulas against numbers printed in the papers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from launch.estimate import (
    activation_bytes,
    model_state_bytes,
    rank_memory,
    readable_bytes,
    readable_count,
    split_layer_bytes,
)
from pretrain.config import load_config
from pretrain.config.derive import key_value_size, parameter_count
from pretrain.models.swiglu import SwiGLU

REPO = Path(__file__).parents[3]


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_equal_figure_1_of_the_zero_paper(stage, gigabytes):
    """7.5 B parameters, 64 data ranks, fp16 with Adam, gradients kept in fp16."""
    total = sum(model_state_bytes(7_500_000_000, 64, stage, "fp16", gradient_bytes=2))
    assert total / 1e9 == pytest.approx(gigabytes, abs=0.05)


def config_with(**overrides: object):
    texts = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return load_config(REPO / "configs" / "gpt" / "tiny.yaml", texts)


def test_activations_of_a_layer_are_34_sbh_without_tensor_parallelism():
    """Korthikanti et al., 2022, equation 1 without the attention scores: s*b*h*34 bytes in 16 bit."""
    one, two = (activation_bytes(config_with(precision="bf16", model__num_layers=n)) for n in (1, 2))
    assert two - one == 34 * 128 * 4 * 128  # seq_length x micro_batch_size x hidden_size


def test_a_gated_mlp_is_counted_with_what_autograd_keeps():
    model = load_config(REPO / "configs" / "gpt" / "llama-tiny.yaml").model
    attention = 2 * (2 * model.hidden_size + 2 * key_value_size(model))
    activation = SwiGLU(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1))
    both, weight = (
        torch.randn(1, 2 * model.ffn_hidden_size).requires_grad_(),
        torch.nn.Parameter(torch.ones(1, 1)),
    )
    kept: dict[int, int] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        product = activation(both) * weight  # keeps both, as the matrix product does
    assert product.requires_grad and sum(kept.values()) - 4 == 2 * (
        split_layer_bytes(model) - attention
    )  # in fp32, without the weight


def test_full_recompute_keeps_one_input_a_layer():
    one, two = (
        activation_bytes(config_with(precision="bf16", model__num_layers=n, training__recompute="full"))
        for n in (1, 2)
    )
    assert two - one == 2 * 128 * 4 * 128


def test_tensor_parallelism_splits_24_of_the_34():
    one, two = (
        activation_bytes(
            config_with(precision="bf16", model__num_layers=n, parallel__tensor_model_parallel_size=2)
        )
        for n in (1, 2)
    )
    assert two - one == 22 * 128 * 4 * 128


@pytest.mark.parametrize(("recompute", "total"), [("none", 34 / 2), ("full", 2 / 2)])
def test_sequence_parallelism_splits_the_rest(recompute, total):
    """Korthikanti et al., 2022, equation 4: s*b*h*34/t."""
    keys = {"parallel__tensor_model_parallel_size": 2, "parallel__sequence_parallel": "true"}
    one, two = (
        activation_bytes(
            config_with(precision="bf16", model__num_layers=n, training__recompute=recompute, **keys)
        )
        for n in (1, 2)
    )
    assert two - one == total * 128 * 4 * 128


@pytest.mark.parametrize(("key", "left"), [("offload_optimizer", (4, 4, 0)), ("offload_param", (0, 4, 12))])
def test_what_is_offloaded_is_not_on_the_device(key, left):
    config = config_with(parallel__zero_stage=3)
    moved = config_with(parallel__zero_stage=3, **{f"deepspeed__zero_optimization__{key}__device": "cpu"})
    parameters = parameter_count(config.model)
    before, after = rank_memory(config, 1), rank_memory(moved, 1)
    assert (before.weights, before.gradients, before.optimizer) == tuple(parameters * n for n in (4, 4, 12))
    assert (after.weights, after.gradients, after.optimizer) == tuple(parameters * n for n in left)
    assert before.activations == after.activations


def test_hpz_holds_the_weights_of_a_group_once_more():
    extra = {"deepspeed__zero_optimization__zero_hpz_partition_size": 2}
    plain, hpz = (rank_memory(config_with(parallel__zero_stage=3, **keys), 4) for keys in ({}, extra))
    assert hpz.weights == 3 * plain.weights  # a quarter, and a half


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**40, "5.0 TiB"), (2**60, "1048576.0 TiB")],
)
def test_sizes_are_readable(count, text):
    assert readable_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999"), (1500, "1.5 K"), (124_439_808, "124.4 M"), (2e12, "2 T")]
)
def test_counts_are_readable(count, text):
    assert readable_count(count) == text
