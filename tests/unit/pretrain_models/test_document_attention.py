"""How attention within documents reaches torch's kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from finetune.single_rank import LAYOUT, single_rank
from pretrain.config.model import GPTModelConfig
from pretrain.models import attention
from pretrain.models.gpt import GPT, as_bias, document_mask

IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1]])


def test_all_layers_share_one_mask_also_for_the_backward_pass():
    model = GPTModelConfig(
        kind="gpt",
        vocab_size=300,
        num_layers=3,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=8,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    kept: list[int] = []

    def keep(tensor):
        if tensor.ndim == 4 and tensor.shape[-2:] == (8, 8) and not tensor.requires_grad:
            kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with single_rank(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = GPT(model, **LAYOUT)(torch.zeros_like(IDS), IDS + 1, document_ids=IDS)["lm_loss"]
    assert loss.isfinite() and len(kept) == 3 and len(set(kept)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_computes_what_its_mask_does(dtype):
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 3, 8, 16, dtype=dtype) for _ in range(3))
    mask = document_mask(IDS)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(F.scaled_dot_product_attention(q, k, v, attn_mask=as_bias(mask, dtype)), expected)


@pytest.mark.parametrize(
    ("device", "masked", "heads"), [("cuda", True, 6), ("cuda", False, 2), ("cpu", True, 2)]
)
def test_keys_are_repeated_where_no_fused_kernel_of_a_gpu_shares_them(monkeypatch, device, masked, heads):
    seen = {}

    def fused(q, k, v, **how):
        seen.update(keys=k.shape[1], values=v.shape[1], shares=how["enable_gqa"])
        return q

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", fused)
    with FakeTensorMode():
        q, k = (torch.empty(1, n, 8, 16, device=device) for n in (6, 2))
        mask = torch.empty(1, 1, 8, 8, device=device) if masked else None
        attention._attend(q, k, k, mask, not masked, 0.0)
    assert seen == {"keys": heads, "values": heads, "shares": heads != 6}
