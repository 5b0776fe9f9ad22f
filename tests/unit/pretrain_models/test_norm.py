"""Our norms compute what the papers say, and mark their parameters for the sequence-parallel reduction."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from finetune.single_rank import LAYOUT, single_rank
from pretrain.config.model import BertModelConfig, GPTModelConfig
from pretrain.models.bert import BertForPreTraining
from pretrain.models.gpt import GPT
from pretrain.models.norm import NORMS, LayerNorm, norm_class
from pretrain.parallel import blocks

SIZES = {
    "vocab_size": 300,
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def config(normalization: str, sequence_parallel: bool = False) -> TransformerConfig:
    return TransformerConfig(
        num_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        normalization=normalization,
        sequence_parallel=sequence_parallel,
        tensor_model_parallel_size=2 if sequence_parallel else 1,
        use_cpu_initialization=True,
    )


@pytest.mark.parametrize("normalization", NORMS)
def test_formula(normalization):
    norm = norm_class(config(normalization))(config(normalization), 16, 1e-3)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(16))
    x = torch.randn(5, 2, 16, dtype=torch.float64)
    if normalization == "LayerNorm":
        centred = x - x.mean(-1, keepdim=True)
        wanted = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight + norm.bias
    else:
        wanted = x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    assert torch.allclose(norm.double()(x), wanted)


@pytest.mark.parametrize("shape", [(6, 2, 16), (1, 16), (0, 3, 16)])
def test_rms_norm_in_bf16_is_the_formula_rounded_once(shape, monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS", 80)  # several blocks, the last one short
    norm = norm_class(config("RMSNorm"))(config("RMSNorm"), 16, 1e-3).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16, generator=generator))
    x, weights = (torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in range(2))
    ours = norm(x.requires_grad_())
    mine = ours, *torch.autograd.grad(ours, (x, norm.weight), weights)
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, norm.weight))
    wanted = torch.nn.functional.rms_norm(exact_x, (16,), exact_weight, 1e-3)
    true = wanted, *torch.autograd.grad(wanted, (exact_x, exact_weight), weights.double())
    for one, other in zip(mine, true, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2.0**-8, atol=1e-6)


@pytest.mark.parametrize("normalization", NORMS)
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_parameters_are_marked_under_sequence_parallelism(normalization, sequence_parallel):
    of = config(normalization, sequence_parallel)
    parameters = dict(norm_class(of)(of, 16).named_parameters())
    assert parameters.keys() == ({"weight", "bias"} if normalization == "LayerNorm" else {"weight"})
    assert all(p.sequence_parallel is sequence_parallel for p in parameters.values())


def test_every_norm_of_the_models_is_ours_but_that_of_the_mlm_head():
    with single_rank():
        gpt = GPT(GPTModelConfig(kind="gpt", **SIZES), **LAYOUT)
        berts = [
            BertForPreTraining(BertModelConfig(kind="bert", norm_position=position, **SIZES), **LAYOUT)
            for position in ("post", "pre")
        ]
    for model, count in [(gpt, 5), *((bert, 5) for bert in berts)]:
        norms = [n for n, m in model.named_modules() if isinstance(m, LayerNorm)]
        others = [n for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm) and n not in norms]
        assert len(norms) == count
        assert others == ([] if model is gpt else ["mlm_head.norm"])
