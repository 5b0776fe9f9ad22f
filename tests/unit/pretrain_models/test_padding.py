"""Padding that is left out: places, and gradients through taking and putting."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from finetune.single_rank import LAYOUT, single_rank
from pretrain.config.model import BertModelConfig
from pretrain.models.attention import SdpaCoreAttention
from pretrain.models.bert import BertForPreTraining
from pretrain.models.padding import keep

MODEL = BertModelConfig(
    kind="bert", vocab_size=50, num_layers=2, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2,
    max_position_embeddings=8, hidden_dropout=0.0, attention_dropout=0.0, init_std=0.2,
)  # fmt: skip
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()  # [B, S]


@pytest.mark.parametrize(("multiple_of", "rows"), [(1, 10), (4, 12), (5, 10)])
def test_real_tokens_are_taken_and_put_back(multiple_of: int, rows: int) -> None:
    kept = keep(MASK, multiple_of)
    padded = torch.arange(1.0, 31).view(5, 3, 2)  # [S, B, H]
    taken = kept.take(padded)
    assert taken.shape == (rows, 1, 2)
    real = MASK.t()[..., None]
    assert torch.equal(kept.put(taken) * real, padded * real)
    by_sample, lengths = padded.transpose(0, 1), (2, 3, 5)  # the shortest first
    assert torch.equal(
        taken[:10, 0], torch.cat([by_sample[i, :n] for i, n in zip((1, 2, 0), lengths, strict=True)])
    )
    assert [len(part) for part in kept.split(taken)] == [*lengths, rows - 10][: 3 + (rows > 10)]
    assert torch.equal(kept.join(kept.split(taken)), taken)


def test_samples_of_one_length_stand_in_one_group() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]]).bool()  # padding anywhere, or alone
    kept = keep(mask, 1)
    padded = torch.arange(12.0).view(3, 4)  # [S, B]
    assert kept.groups == ((2, 2), (1, 3))
    two, one = kept.split(kept.take(padded))
    assert two.tolist() == [[4, 2], [8, 6]] and one.tolist() == [[1], [5], [9]]
    assert not kept.all and keep(mask[1:2], 1).all


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", [MASK, torch.ones_like(MASK), MASK & torch.tensor([[1], [1], [0]]).bool()])
@pytest.mark.parametrize("multiple_of", [1, 5])
def test_attention_by_length_is_that_of_padded_rows(
    mask: Tensor, multiple_of: int, dtype: torch.dtype
) -> None:
    """Padded rows are what a GPU computes; here in double precision, with torch's own attention."""
    config = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=2, attention_dropout=0.0)
    core = SdpaCoreAttention(config, 1, AttnMaskType.padding, "self")
    kept, real = keep(mask, multiple_of), int(mask.sum())
    generator = torch.Generator().manual_seed(3)
    shape = len(kept.places), 1, 2, 8
    inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    weights = torch.randn(real, 1, 16, generator=generator).to(dtype)
    core.kept = kept
    mine = core(*inputs, mask[:, None, None])[:real]
    true = core._padded(kept, tuple(exact), mask[:, None, None])[:real]
    pairs = [(mine, true)]
    pairs += zip(
        torch.autograd.grad(mine, inputs, weights),
        torch.autograd.grad(true, exact, weights.double()),
        strict=True,
    )
    # In bf16 probabilities, their gradients and the results are rounded.
    bound = 3 * 2.0**-9 if dtype == torch.bfloat16 else 1e-6
    for one, other in pairs:
        assert (one.double() - other).norm() < bound * other.norm()


def test_gradients_are_those_of_indexing() -> None:
    kept = keep(MASK, 1)
    padded = torch.randn(5, 3, 2, dtype=torch.double, requires_grad=True)
    rows = torch.randn(10, 1, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(kept.take, (padded,)) and torch.autograd.gradcheck(kept.put, (rows,))


@pytest.mark.parametrize("real", [0, 1])
def test_a_batch_of_padding_alone_and_one_without_any(real: int) -> None:
    kept = keep(torch.full((3, 4), bool(real)), 1)
    padded = torch.randn(4, 3, 2)
    assert kept.all == bool(real) and len(kept.places) == (12 if real else 1)
    if real:
        assert torch.equal(kept.put(kept.take(padded)), padded)


def test_layers_see_real_tokens_alone_and_what_stands_in_padding_does_not_matter() -> None:
    tokens = torch.randint(6, 50, MASK.shape, generator=torch.Generator().manual_seed(1))
    seen: list[int] = []
    with single_rank():
        model: BertForPreTraining = BertForPreTraining(MODEL, **LAYOUT).eval()
        layer = model.encoder.layers[0]
        with layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(len(inputs[0]))):
            first, second = (encoded(model, ids) for ids in (tokens, tokens.masked_fill(~MASK, 7)))
        alone = [encoded(model, tokens[i : i + 1, : MASK[i].sum()]) for i in range(3)]
    assert seen == [10, 10]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.cat(alone), atol=1e-6, rtol=1e-5)


def encoded(model: BertForPreTraining, tokens: Tensor) -> Tensor:
    """[T, H] hidden states of the real tokens, sample by sample."""
    mask = MASK if len(tokens) == len(MASK) else torch.ones_like(tokens, dtype=torch.bool)
    hidden, _ = model.encoder(tokens, torch.zeros_like(tokens), mask)
    return hidden.transpose(0, 1)[mask].detach()  # type: ignore[no-any-return]
