"""Losses and all gradients against transformers with the same weights: the reference that is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.ranks import RankPool

COMPARE = "tests.distributed.test_reference:compare"


def compare(kind: str, tp: int) -> dict[str, Any]:
    """On one rank: our loss and merged gradients beside those of transformers' class (fp32, no dropout)."""
    import numpy as np
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from transformers import BertForPreTraining, GPT2LMHeadModel

    from finetune.hf_config import bert_config, gpt2_config
    from finetune.weights import bert_pretraining_links, gpt_links, to_hf
    from pretrain.checkpoint.layout import parameter_layouts
    from pretrain.models import build_model
    from pretrain.parallel.rng import seed_initialization
    from pretrain.parallel.topology import initialize_topology
    from pretrain.step import to_device
    from tests.support.training import Layout, micro_batches, tiny_config

    topology = initialize_topology(tp)
    config: Any = tiny_config(kind, Layout(tp))
    seed_initialization(config.seed)
    model: Any = build_model(config)
    with torch.no_grad():  # fresh biases and norms are 0 and 1, which would hide errors in them
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            if not getattr(parameter, "tensor_model_parallel", False):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    layouts = parameter_layouts(model, tp)

    def merged(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        whole = {}
        for name, tensor in tensors.items():
            shards = [torch.empty_like(tensor) for _ in range(tp)]
            dist.all_gather(shards, tensor.contiguous(), group=topology.tensor_model_parallel_group)
            whole[name] = layouts[name].merge(shards)
        return whole

    links = gpt_links(config.model) if kind == "gpt" else bert_pretraining_links(config.model)
    theirs: Any
    if kind == "gpt":
        theirs = GPT2LMHeadModel(gpt2_config(config.model))
    else:
        theirs = BertForPreTraining(bert_config(config.model))
    theirs.load_state_dict(
        to_hf(links, merged({n: p.detach() for n, p in model.named_parameters()})), strict=False
    )
    theirs.tie_weights()
    theirs.eval()
    batch = to_device(micro_batches(kind, 0, 0, 1)[3], torch.device("cpu"))
    sums = model(**batch)
    counts = model.target_counts(batch)
    ours = sum(sums[name] / counts[name] for name in sums)
    ours.backward()
    if kind == "gpt":
        logits = theirs(batch["tokens"]).logits
        losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
        loss = (losses * batch["loss_mask"]).sum() / batch["loss_mask"].sum()
    else:
        labels = torch.full_like(batch["tokens"], -100)
        labels.view(-1)[batch["masked_positions"]] = batch["masked_labels"]
        loss = theirs(
            batch["tokens"],
            attention_mask=batch["padding_mask"].long(),
            token_type_ids=batch["token_types"],
            labels=labels,
            next_sentence_label=batch["next_sentence_labels"],
        ).loss
    loss.backward()
    gradients = to_hf(links, merged({n: p.grad for n, p in model.named_parameters()}))
    worst = {}
    for name, parameter in theirs.named_parameters():
        want, got = parameter.grad.numpy(), gradients[name].numpy()
        worst[name] = float(np.abs(got - want).max() / np.abs(want).max())
    return {"loss": float(ours.detach()), "reference": float(loss.detach()), "worst": worst}


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    with RankPool(1) as one, RankPool(2) as two:
        yield {1: one, 2: two}


@pytest.mark.distributed
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_losses_and_gradients_equal_transformers(pools: dict[int, RankPool], kind: str, tp: int) -> None:
    result = pools[tp].run(COMPARE, kind=kind, tp=tp)[0]
    assert result["loss"] == pytest.approx(result["reference"], rel=1e-5)
    assert len(result["worst"]) > 20
    # A key's bias shifts all scores of a query alike, so its true gradient is 0 and only rounding is left.
    wrong = {
        n: w for n, w in result["worst"].items() if w > 1e-3 and not n.endswith("attention.self.key.bias")
    }
    assert not wrong
