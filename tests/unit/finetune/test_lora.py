"""Adapters: what is trained and kept, merged weights, and directories that peft loads."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from finetune import predict
from finetune.export_adapter import adapter_state, export_adapter
from finetune.export_hf import export
from finetune.kinds import build, kind_of
from finetune.lora import adapted, add_adapters, merged
from finetune.lora_config import LoraConfig
from finetune.single_rank import single_rank
from finetune.source import read_source
from finetune.weights import to_hf
from pretrain.checkpoint import CheckpointError, find_checkpoint, load_parameters, read_parameters
from pretrain.config import ConfigError
from pretrain.parallel.zero import Engine
from tests.unit.finetune.test_conversion import architecture
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)
from tests.unit.finetune.test_task_runs import models, run, write_config  # noqa: F401

LORA = LoraConfig(rank=4, alpha=8.0)


def with_adapters(of, lora=LORA):
    """A model of random weights with adapters that are not zero, and its parameters."""
    torch.manual_seed(0)
    model = build(of).eval()
    add_adapters(model, lora, ("head.",), seed=1, recompute=False)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model, {name: p.detach().clone() for name, p in model.named_parameters()}


def inputs(of):
    tokens = torch.randint(of.model.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    if of.model.kind == "gpt":
        return (tokens,)
    return tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["gpt", "llama", "classifier"])
def test_merged_weights_compute_what_the_adapters_compute(kind):
    of = architecture(kind, 900)
    with single_rank() as topology:
        model, parameters = with_adapters(of)
        whole = build(of).eval()
        load_parameters(whole, merged(parameters, LORA), topology)
        base = build(of).eval()
        load_parameters(base, parameters, topology)
        with torch.no_grad():
            mine, theirs, without = (m(*inputs(of))["logits"] for m in (model, whole, base))
    assert torch.allclose(mine, theirs, atol=1e-4) and not torch.allclose(mine, without, atol=1e-2)
    assert len(adapted(parameters)) == 8
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n in parameters if n.endswith(("lora_a", "lora_b")) or n.startswith("head.")}


def test_fresh_adapters_change_nothing_and_only_the_targets_have_one():
    of = architecture("gpt", 900)
    with single_rank():
        torch.manual_seed(0)
        model = build(of).eval()
        with torch.no_grad():
            before = model(*inputs(of))["logits"]
            add_adapters(model, LoraConfig(targets=["linear_qkv"]), (), seed=1, recompute=False)
            assert torch.equal(model(*inputs(of))["logits"], before)
    names = adapted(dict(model.named_parameters()))
    assert names == [f"decoder.layers.{n}.self_attention.linear_qkv" for n in range(2)]


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_the_adapters_are_those_of_the_written_out_formula(recompute):
    """W x + (alpha / r) B A x, differentiated by torch through merged weights."""
    of = architecture("gpt", 900)
    still = of.model.model_copy(update={"hidden_dropout": 0.0, "attention_dropout": 0.0})
    of = dataclasses.replace(of, model=still)
    with single_rank() as topology:
        model, parameters = with_adapters(of)
        if recompute:
            model = type(model)(of.model, precision="fp32", tensor_model_parallel_size=1, recompute="full")
            load_parameters(model, parameters, topology)
            add_adapters(model, LORA, (), seed=1, recompute=True)
            load_parameters(model, parameters, topology)
        model.train()
        (tokens,) = inputs(of)
        batch = {"tokens": tokens, "labels": tokens.roll(-1, 1), "loss_mask": torch.ones(tokens.shape)}
        model(**batch)["lm_loss"].backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

        whole = build(of).train()
        load_parameters(whole, merged(parameters, LORA), topology)
        whole(**batch)["lm_loss"].backward()
        gradients = {name: p.grad for name, p in whole.named_parameters()}
    scale = LORA.alpha / LORA.rank
    for name in adapted(parameters):
        of_weight = scale * gradients[f"{name}.weight"]
        first, second = parameters[f"{name}.lora_a"], parameters[f"{name}.lora_b"]
        assert torch.allclose(found[f"{name}.lora_b"], of_weight @ first.t(), rtol=1e-3, atol=1e-3), name
        assert torch.allclose(found[f"{name}.lora_a"], second.t() @ of_weight, rtol=1e-3, atol=1e-3), name


@pytest.mark.parametrize("kind", ["gpt", "llama", "classifier"])
def test_base_plus_adapter_is_the_merged_model_in_transformers(kind):
    """By peft's rule, written out: W + (alpha / r) B A, transposed where the layer is a Conv1D."""
    of = architecture(kind, 900)
    with single_rank():
        _, parameters = with_adapters(of)
    theirs, scale = kind_of(of), LORA.alpha / LORA.rank
    base = to_hf(theirs.links(of.model), {n: p for n, p in parameters.items() if "lora_" not in n})
    state = adapter_state(theirs, of.model, parameters)
    model = getattr(transformers, theirs.hf_class)(theirs.hf_config(of)).eval()
    model.load_state_dict(base, strict=False)
    targets = {n.removesuffix(".lora_A.weight") for n in state if n.endswith("lora_A.weight")}
    assert len(targets) == {"gpt": 8, "llama": 14, "classifier": 12}[kind]
    with torch.no_grad():
        for target in targets:
            weight = model.get_submodule(target.removeprefix("base_model.model.")).weight
            added = scale * state[f"{target}.lora_B.weight"] @ state[f"{target}.lora_A.weight"]
            weight += added.t() if kind == "gpt" else added
        tokens = inputs(of)[0]
        found = model(input_ids=tokens).logits
        whole = getattr(transformers, theirs.hf_class)(theirs.hf_config(of)).eval()
        whole.load_state_dict(to_hf(theirs.links(of.model), merged(parameters, LORA)), strict=False)
        assert torch.allclose(found, whole(input_ids=tokens).logits, atol=1e-4)


def test_a_run_trains_adapters_only_resumes_and_exports_both_ways(models, tmp_path, monkeypatch):  # noqa: F811
    config = write_config(tmp_path, models, "classification")
    engines = []
    begin = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda *args: (engines.append(args[0]), begin(*args))[1])
    lora = ["lora.rank=4", "lora.alpha=16", "optimizer.lr=1e-2", "checkpoint.save_interval=20"]
    assert run(config, *lora, "training.train_steps=30") == 0
    assert run(config, *lora) == 0  # goes on to step 60
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["accuracy"] > 0.9 and results["train_steps"] == 60

    engine = engines[-1]
    trained = sum(p.numel() for p in engine.model.parameters() if p.requires_grad)
    optimizer = engine.deepspeed.optimizer
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    assert sum(state["exp_avg"].numel() for state in states) == trained
    assert trained < 0.2 * sum(p.numel() for p in engine.model.parameters())

    before, raw = read_source(models / "bert").parameters, read_parameters(find_checkpoint(tmp_path / "run"))
    for name, tensor in raw.items():
        if name in before:
            assert torch.equal(tensor, before[name]), name
    answers = tmp_path / "answers.jsonl"
    assert predict.predict(tmp_path / "run", tmp_path / "validation.jsonl", answers, 8) == 37
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    right = sum(row["prediction"]["label"] == row["label"] for row in rows)
    assert right == round(37 * results["accuracy"])  # of the merged weights

    told = export_adapter(tmp_path / "run", tmp_path / "adapter")
    assert "differ by at most" in told[0]
    export(tmp_path / "run", tmp_path / "merged")
    export(models / "bert", tmp_path / "base")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(state) == 2 * 12 + 4  # query, key, value and three more a layer; pooler and classifier whole
    peft = pytest.importorskip("peft")
    names = {"num_labels": 2}
    base = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", **names)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    wanted = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokens = torch.randint(900, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, wanted(tokens).logits, atol=1e-5)
        assert not torch.allclose(model(tokens).logits, base(tokens).logits * 0.0, atol=1e-2)


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_peft_loads_the_adapters_of_a_gpt(kind, models, tokenizer_model, tmp_path):  # noqa: F811
    peft = pytest.importorskip("peft")
    from tests.unit.finetune.test_conversion import write_run

    write_run(tmp_path / "base-run", architecture(kind, 900), tokenizer_model)
    config = write_config(tmp_path, models, "sft")
    settings = [f"pretrained={tmp_path / 'base-run'}", "lora.rank=2", "optimizer.lr=1e-2"]
    assert run(config, *settings, "training.train_steps=3") == 0
    export_adapter(tmp_path / "run", tmp_path / "adapter")
    export(tmp_path / "run", tmp_path / "merged")
    export(tmp_path / "base-run", tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokens = torch.randint(900, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = base(tokens).logits.clone()
        found = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(tokens).logits
        wanted = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(tokens).logits
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(found, plain, atol=1e-3)


def test_what_cannot_be_is_told(models, tmp_path):  # noqa: F811
    config = write_config(tmp_path, models, "classification")
    with pytest.raises(ConfigError, match="optimizer.frozen_layers: with lora"):
        run(config, "lora.rank=4", "optimizer.frozen_layers=1")
    with pytest.raises(ConfigError, match="lora: adapters of random weights"):
        run(config, "lora.rank=4", "from_scratch=true")
    with pytest.raises(ConfigError, match="lora.targets"):
        run(config, 'lora.targets=["linear_q"]')
    with pytest.raises(ConfigError, match="has no adapters; export it without --adapter"):
        export_adapter(models / "bert", tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        export_adapter(tmp_path / "nowhere", tmp_path / "adapter")
