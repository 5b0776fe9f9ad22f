"""Logits, losses and all gradients against transformers with the same weights: a reference not ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.ranks import RankPool

COMPARE = "tests.distributed.test_reference:compare"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt", {}),
    "llama": ("llama", {}),
    "llama-tied-biased": (
        "llama",
        {"untie_embeddings_and_output_weights": False, "add_bias_linear": True, "rope_scaling_factor": 8.0},
    ),
    "bert": ("bert", {}),
    "bert-mlm": ("bert", {"add_binary_head": False}),
    "megatron-bert": ("bert", {"norm_position": "pre"}),
}
"""By name: the kind of `tiny_config` and what differs in its model section."""


def compare(name: str, tp: int) -> dict[str, Any]:
    """On one rank: our logits, losses and merged gradients beside those of transformers, in fp32."""
    import torch
    import torch.distributed as dist
    import transformers

    from finetune.kinds import Architecture, kind_of
    from finetune.weights import to_hf
    from pretrain.checkpoint.layout import parameter_layouts
    from pretrain.models import build_model
    from pretrain.parallel.rng import seed_initialization
    from pretrain.parallel.topology import initialize_topology
    from pretrain.step import to_device
    from tests.support.training import Layout, micro_batches, tiny_config

    topology = initialize_topology(tp)
    kind, changes = MODELS[name]
    config: Any = tiny_config(kind, Layout(tp), model=changes)
    seed_initialization(config.seed)
    model: Any = build_model(config)
    with torch.no_grad():  # fresh biases and norms are 0 and 1, which would hide errors in them
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            if not getattr(parameter, "tensor_model_parallel", False):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            elif parameter.ndim == 1:  # biases of column-parallel layers: any value, other on each rank
                parameter.add_(torch.randn(parameter.shape) * 0.05 * (1 + topology.rank))
    layouts = parameter_layouts(model, tp)

    def merged(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        whole = {}
        for name, tensor in tensors.items():
            shards = [torch.empty_like(tensor) for _ in range(tp)]
            dist.all_gather(shards, tensor.contiguous(), group=topology.tensor_model_parallel_group)
            whole[name] = layouts[name].merge(shards)
        return whole

    reference = kind_of(Architecture(config.model))
    links = reference.links(config.model)
    theirs: Any = getattr(transformers, reference.hf_class)(reference.hf_config(Architecture(config.model)))
    theirs.load_state_dict(
        to_hf(links, merged({n: p.detach() for n, p in model.named_parameters()})), strict=False
    )
    theirs.tie_weights()
    theirs.eval()
    batch = to_device(micro_batches(kind, 0, 0, 1)[3], torch.device("cpu"))
    sums = model(**batch)
    counts = model.target_counts(batch)
    losses = {key: sums[key] / counts[key] for key in sums}
    sum(losses.values()).backward()
    logits, expected = _bert(theirs, batch) if kind == "bert" else _gpt(theirs, batch)
    sum(expected.values()).backward()
    with torch.no_grad():
        inputs = ("tokens", "token_types", "padding_mask")
        ours = model(**{key: batch[key] for key in inputs if key in batch})
    apart = 0.0
    for key, want in logits.items():
        got = ours[key] if key == "nsp_logits" else _whole_vocabulary(ours[key], topology)
        if key == "logits" and "padding_mask" in batch:  # ours are not computed at padding
            got, want = got[batch["padding_mask"]], want[batch["padding_mask"]]
        apart = max(apart, float((got[..., : want.shape[-1]] - want).abs().max()))
    gradients = to_hf(links, merged({n: p.grad for n, p in model.named_parameters()}))
    worst = {
        key: float((gradients[key] - p.grad).abs().max() / p.grad.abs().max())
        for key, p in theirs.named_parameters()
    }
    return {
        "losses": {key: float(loss.detach()) for key, loss in losses.items()},
        "expected": {key: float(loss.detach()) for key, loss in expected.items()},
        "logits": apart,
        "worst": worst,
    }


def _whole_vocabulary(part: Any, topology: Any) -> Any:
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(part) for _ in range(topology.tensor_model_parallel_size)]
    dist.all_gather(parts, part.contiguous(), group=topology.tensor_model_parallel_group)
    return torch.cat(parts, -1)


def _gpt(theirs: Any, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their logits and loss."""
    import torch.nn.functional as F

    logits = theirs(batch["tokens"]).logits
    losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
    loss = (losses * batch["loss_mask"]).sum() / batch["loss_mask"].sum()
    return {"logits": logits.detach()}, {"lm_loss": loss}


def _bert(theirs: Any, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their logits and losses."""
    import torch
    import torch.nn.functional as F

    out = theirs(
        batch["tokens"], attention_mask=batch["padding_mask"].long(), token_type_ids=batch["token_types"]
    )
    binary = hasattr(out, "seq_relationship_logits")
    logits = out.prediction_logits if binary else out.logits
    labels = torch.full_like(batch["tokens"], -100)
    labels.view(-1)[batch["masked_positions"]] = batch["masked_labels"]
    losses = {"mlm_loss": F.cross_entropy(logits.transpose(1, 2), labels)}
    shown = {"logits": logits.detach()}
    if binary:
        shown["nsp_logits"] = out.seq_relationship_logits.detach()
        losses["nsp_loss"] = F.cross_entropy(out.seq_relationship_logits, batch["next_sentence_labels"])
    return shown, losses


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    with RankPool(1) as one, RankPool(2) as two:
        yield {1: one, 2: two}


@pytest.mark.distributed
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_equal_transformers(pools: dict[int, RankPool], name: str, tp: int) -> None:
    result = pools[tp].run(COMPARE, name=name, tp=tp)[0]
    assert result["losses"] == pytest.approx(result["expected"], rel=1e-5)
    assert result["logits"] < 1e-4
    assert len(result["worst"]) > 20
    # A key's bias shifts all scores of a query alike, so its true gradient is 0 and only rounding is left
    # (not so under rope, which turns it by position).
    wrong = {
        n: w for n, w in result["worst"].items() if w > 1e-3 and not n.endswith("attention.self.key.bias")
    }
    assert not wrong


def padded_slice(tp: int) -> list[float]:
    """On one rank: a vocabulary so small that the last rank's slice is all padding; loss and gradients."""
    import torch
    import torch.distributed as dist

    from pretrain.models.vocabulary import VocabularySlice, vocabulary_loss
    from pretrain.parallel.topology import initialize_topology

    topology = initialize_topology(tp)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(9, 4, generator=generator).requires_grad_()
    whole = torch.randn(16, 4, generator=generator)
    rows, rank = 16 // tp, topology.tensor_model_parallel_rank
    weight = whole[rank * rows : (rank + 1) * rows].clone().requires_grad_()
    part = VocabularySlice(
        first=rank * rows,
        real=max(0, min(rows, 7 - rank * rows)),
        group=topology.tensor_model_parallel_group if tp > 1 else None,
    )
    loss = vocabulary_loss(hidden, (weight, None), torch.arange(9) % 7, None, part)
    loss.backward()
    shares = [torch.empty_like(hidden) for _ in range(tp)]
    dist.all_gather(shares, hidden.grad)
    pieces = [torch.empty_like(weight) for _ in range(tp)]
    dist.all_gather(pieces, weight.grad)
    return [loss.item(), *sum(shares).flatten().tolist(), *torch.cat(pieces).flatten().tolist()]


@pytest.mark.distributed
def test_a_rank_may_hold_nothing_but_padding(pools: dict[int, RankPool]) -> None:
    split = pools[2].run("tests.distributed.test_reference:padded_slice", tp=2)
    (whole,) = pools[1].run("tests.distributed.test_reference:padded_slice", tp=1)
    assert split[0] == split[1] == pytest.approx(whole, rel=1e-6, abs=1e-6)
    assert len(whole) == 1 + 9 * 4 + 16 * 4
