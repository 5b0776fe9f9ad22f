"""Rotary angles, grouped queries and sizes against independent references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from finetune.single_rank import LAYOUT, single_rank
from pretrain.config.derive import layer_matrix_parameters, parameter_count, train_flops_per_token
from pretrain.config.model import BertModelConfig, GPTModelConfig, model_problems
from pretrain.models.attention import SdpaCoreAttention
from pretrain.models.bert import BertForPreTraining
from pretrain.models.gpt import GPT
from pretrain.models.rotary import RotaryAngles

SIZES = {
    "vocab_size": 300,
    "num_layers": 2,
    "hidden_size": 48,
    "ffn_hidden_size": 80,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
LLAMA = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "num_query_groups": 2,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
}


def gpt(**changes):
    return GPTModelConfig(kind="gpt", **{**SIZES, **changes})


@pytest.mark.parametrize("factor", [None, 8.0, 32.0])
def test_rotary_angles_are_those_of_transformers(factor):
    model = gpt(
        **LLAMA | {"hidden_size": 256, "max_position_embeddings": 131072},
        rotary_base=500000.0,
        rope_scaling_factor=factor,
    )
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=256,
            num_attention_heads=4,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0} | (scaling if factor else {}),
            max_position_embeddings=131072,
        )
    )
    positions = torch.tensor([[0, 1, 2, 3, 77], [0, 1, 0, 9000, 131071]])
    cosine, sine = theirs(torch.zeros(2, 5, 256), positions)  # [B, S, D]
    angles = RotaryAngles(model)(positions)[:, :, 0].transpose(0, 1)
    assert torch.allclose(angles.cos(), cosine, atol=1e-5) and torch.allclose(angles.sin(), sine, atol=1e-5)


def test_grouped_queries_share_keys_and_values():
    torch.manual_seed(0)
    q, k, v = torch.randn(7, 2, 6, 8), torch.randn(7, 2, 3, 8), torch.randn(7, 2, 3, 8)
    config = TransformerConfig(num_layers=1, hidden_size=48, num_attention_heads=6, attention_dropout=0.0)
    core = SdpaCoreAttention(config, 1, AttnMaskType.causal, "self")
    got = core(q, k, v, None).view(7, 2, 6, 8)
    for head in range(6):  # heads 0 and 1 share the first group
        scores = torch.einsum("sbd,tbd->bst", q[:, :, head], k[:, :, head // 2]) / 8**0.5
        scores = scores.masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -torch.inf)
        wanted = torch.einsum("bst,tbd->sbd", scores.softmax(-1), v[:, :, head // 2])
        assert torch.allclose(got[:, :, head], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        gpt(),
        gpt(**LLAMA),
        gpt(**LLAMA | {"add_bias_linear": True, "untie_embeddings_and_output_weights": False}),
        gpt(swiglu=True, num_query_groups=1),
        BertModelConfig(kind="bert", **SIZES),
        BertModelConfig(kind="bert", norm_position="pre", **SIZES),
    ],
    ids=["gpt2", "llama", "llama-biased-tied", "mixed", "bert", "bert-pre"],
)
def test_parameter_count_is_that_of_the_built_model(model):
    with single_rank():
        built = GPT(model, **LAYOUT) if model.kind == "gpt" else BertForPreTraining(model, **LAYOUT)
    assert parameter_count(model) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("model", [gpt(), gpt(**LLAMA)], ids=["gpt2", "llama"])
def test_flops_are_those_that_torch_counts(model):
    """Forward and backward of the layers are three times the forward products that torch's counter sees."""
    from torch.utils.flop_counter import FlopCounterMode

    with single_rank():
        built = GPT(model, **LAYOUT).eval().decoder
        hidden = torch.randn(16, 2, 48, requires_grad=True)
        angles = RotaryAngles(model)(torch.arange(16)[None]) if model.swiglu else None
        with FlopCounterMode(display=False) as counter:
            built(hidden, None, rotary_pos_emb=angles)
    scores = 4 * 2 * 16 * 16 * 48 * model.num_layers  # torch does not count its CPU attention kernel
    forward = counter.get_total_flops()
    assert forward == 2 * 32 * model.num_layers * layer_matrix_parameters(model)
    assert 3 * (forward + scores) == 32 * train_flops_per_token(model, 16)


@pytest.mark.parametrize(
    ("changes", "tp", "wanted"),
    [
        ({"num_query_groups": 3}, 1, ["num_query_groups: 3 does not divide model.num_attention_heads: 4"]),
        (LLAMA, 4, ["tensor_model_parallel_size: 4 does not divide model.num_query_groups: 2"]),
        ({"rotary_base": 5e5}, 1, ["model.rotary_base is for model.position_embedding_type: rope"]),
        ({"rope_scaling_factor": 8.0}, 1, ["model.rope_scaling_factor is for model.position_embedding_type"]),
        (LLAMA | {"hidden_size": 60}, 1, ["is odd"]),
        (LLAMA, 2, []),
    ],
)
def test_problems_of_a_model_section_are_named(changes, tp, wanted):
    found = model_problems(gpt(**changes), tp)
    assert len(found) == len(wanted)
    assert all(text in problem for text, problem in zip(wanted, found, strict=True))


def test_a_gated_mlp_multiplies():
    """The order is [gate; up]: the first half of fc1 goes through silu."""
    with single_rank():
        mlp = GPT(gpt(**LLAMA), **LAYOUT).decoder.layers[0].mlp
        x = torch.randn(3, 1, 48)
        gate, up = mlp.linear_fc1.weight.chunk(2)
        wanted = (F.silu(x @ gate.t()) * (x @ up.t())) @ mlp.linear_fc2.weight.t()
        assert torch.allclose(mlp(x)[0], wanted, atol=1e-6)
