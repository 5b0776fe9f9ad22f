"""Export, import and generate, from checkpoint directories to what a user of transformers sees."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    pipeline,
)

from data_tools.errors import DataError
from data_tools.tokenizer import load_tokenizer
from finetune import export_hf, source
from finetune.config import ImportedConfig
from finetune.errors import ConversionError
from finetune.generate import generate
from finetune.import_hf import import_hf
from finetune.sampling import SamplingOptions
from finetune.single_rank import single_rank
from finetune.source import Architecture, kind_of, read_source, write_weights
from finetune.task_config import ClassificationTask
from finetune.text import open_text_codec
from launch import cli
from pretrain.checkpoint import CheckpointError
from pretrain.config import ConfigError
from pretrain.config.model import BertModelConfig, GPTModelConfig


def architecture(kind, vocab_size):
    sizes = {
        "vocab_size": vocab_size,
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 48,
        "init_std": 0.2,
    }
    if kind == "gpt":
        return Architecture(GPTModelConfig(kind="gpt", **sizes))
    bert = Architecture(BertModelConfig(kind="bert", **sizes))
    return bert if kind == "bert" else dataclasses.replace(bert, labels=("down", "up"))


def write_run(run_dir, of, tokenizer_model):
    """A run directory with one checkpoint of random weights."""
    torch.manual_seed(3)
    with single_rank():
        model = kind_of(of).build(of)
    parameters = {name: p + 0.05 * torch.randn_like(p) for name, p in model.named_parameters()}
    task = ClassificationTask(kind="classification") if of.labels else None
    config = ImportedConfig(imported_from="test", model=of.model, task=task)
    write_weights(run_dir, of, parameters, config, {"tokenizer.model": tokenizer_model})


@pytest.fixture(scope="module")
def runs(tokenizer_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    vocab_size = load_tokenizer(tokenizer_model).vocab_size
    for kind in ("gpt", "bert", "classifier"):
        write_run(root / kind, architecture(kind, vocab_size), tokenizer_model)
    return root


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    told = {kind: export_hf.export(runs / kind, root / kind) for kind in ("gpt", "bert", "classifier")}
    for lines in told.values():
        assert "same ids as ours" in lines[0] and "differ by at most" in lines[1]
    return root


def test_generate_writes_what_transformers_writes(runs, exported):
    prompt = "The return statement"
    model = AutoModelForCausalLM.from_pretrained(exported / "gpt")
    tokenizer = AutoTokenizer.from_pretrained(exported / "gpt")
    encoded = tokenizer(prompt, return_tensors="pt")
    wanted = model.generate(**encoded, max_new_tokens=20, do_sample=False)[0]
    text = generate(runs / "gpt", prompt, 20, SamplingOptions())
    assert text == tokenizer.decode(wanted) and len(text) > len(prompt)


def test_sampling_depends_on_the_seed_only(runs):
    options = SamplingOptions(temperature=1.0, top_k=20)
    first = generate(runs / "gpt", "x", 10, options, seed=1)
    assert (
        first
        == generate(runs / "gpt", "x", 10, options, seed=1)
        != generate(runs / "gpt", "x", 10, options, seed=2)
    )


def test_a_prompt_longer_than_the_context_is_an_error(runs):
    with pytest.raises(ConfigError, match="longer than the model's context of 48"):
        generate(runs / "gpt", "the statement " * 60, 1, SamplingOptions())
    with pytest.raises(ConfigError, match="only a gpt"):
        generate(runs / "bert", "x", 1, SamplingOptions())


def test_the_pretraining_export_starts_a_two_label_classifier(exported):
    model = BertForSequenceClassification.from_pretrained(exported / "bert", num_labels=2)
    reference = BertForPreTraining.from_pretrained(exported / "bert")
    assert model.classifier.out_features == 2
    for name, tensor in reference.bert.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], tensor), name


def test_the_classifier_export_works_with_num_labels_and_in_a_pipeline(runs, exported):
    model = BertForSequenceClassification.from_pretrained(exported / "classifier", num_labels=2)
    head = read_source(runs / "classifier").parameters["head.weight"]
    assert torch.equal(model.classifier.weight, head)
    assert model.config.id2label == {0: "down", 1: "up"} and model.config.label2id == {"down": 0, "up": 1}
    classify = pipeline("text-classification", model=str(exported / "classifier"), device="cpu")
    answer = classify("a return value")[0]
    assert answer["label"] in {"down", "up"} and 0.5 <= answer["score"] <= 1.0


@pytest.mark.parametrize("kind", ["gpt", "bert", "classifier"])
def test_import_gives_the_exported_checkpoint_back(kind, runs, exported, tmp_path):
    import_hf(exported / kind, tmp_path / "run")
    before, after = read_source(runs / kind), read_source(tmp_path / "run")
    assert after.architecture == before.architecture
    assert (after.directory / "tokenizer.model").read_bytes() == (
        before.directory / "tokenizer.model"
    ).read_bytes()
    real = before.architecture.model.vocab_size
    for name, tensor in before.parameters.items():
        padded = tensor.shape[0] > real
        assert torch.equal(
            after.parameters[name][: real if padded else None], tensor[: real if padded else None]
        )


def test_a_foreign_bert_keeps_its_tokenizer_and_comes_back(exported, tmp_path):
    foreign = tmp_path / "foreign"
    config = BertConfig(
        vocab_size=900, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    BertModel(config).save_pretrained(foreign)  # no heads, no "bert." prefix
    with pytest.raises(ConfigError, match="no tokenizer files"):
        import_hf(foreign, tmp_path / "run")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(exported / "bert" / name, foreign / name)
    told = "\n".join(import_hf(foreign, tmp_path / "run"))
    assert "cls.seq_relationship" in told and "no Headwater tokenizer.model" in told
    codec = open_text_codec(read_source(tmp_path / "run").directory)
    plain = AutoTokenizer.from_pretrained(exported / "bert")("a return", add_special_tokens=False)[
        "input_ids"
    ]
    assert codec.encode_batch(["a return"])[0].tolist() == plain and codec.decode(plain) == "a return"
    assert (codec.pad_id, codec.cls_id, codec.sep_id, codec.eod_id) == (0, 2, 3, None)
    export_hf.export(tmp_path / "run", tmp_path / "back")
    assert AutoTokenizer.from_pretrained(tmp_path / "back")("a return")["input_ids"][0] == 2
    again = BertModel.from_pretrained(tmp_path / "back").state_dict()
    for name, tensor in BertModel.from_pretrained(foreign).state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_wrong_weights_are_not_published(runs, tmp_path, monkeypatch):
    def swapped(model):
        """The two norms of a layer exchanged: same shapes, other model."""
        names = {"ln_1": "ln_2", "ln_2": "ln_1"}
        links = source.gpt_links(model)
        return [
            dataclasses.replace(
                x, theirs=tuple(".".join(names.get(p, p) for p in t.split(".")) for t in x.theirs)
            )
            for x in links
        ]

    monkeypatch.setattr(source, "GPT_LM", dataclasses.replace(source.GPT_LM, links=swapped))
    with pytest.raises(ConversionError, match="computes other logits than our model"):
        export_hf.export(runs / "gpt", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_pre_norm_bert_and_an_existing_directory_are_refused(runs, tokenizer_model, tmp_path):
    vocab_size = load_tokenizer(tokenizer_model).vocab_size
    of = architecture("bert", vocab_size)
    pre = Architecture(of.model.model_copy(update={"norm_position": "pre"}))
    write_run(tmp_path / "pre", pre, tokenizer_model)
    with pytest.raises(ConfigError, match="norm_position"):
        export_hf.export(tmp_path / "pre", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="exists"):
        export_hf.export(runs / "gpt", tmp_path / "pre")


def test_import_refuses_what_is_no_model_and_a_run_with_checkpoints(runs, exported, tmp_path):
    with pytest.raises(ConfigError, match="not a Hugging Face model directory"):
        import_hf(tmp_path, tmp_path / "run")
    with pytest.raises(CheckpointError, match="has checkpoints already"):
        import_hf(exported / "gpt", runs / "gpt")


def test_the_commands(runs, tmp_path, capsys):
    arguments = ["--checkpoint", str(runs / "bert"), "--out", str(tmp_path / "out")]
    assert cli.main(["export", *arguments]) == 0
    assert "BertForPreTraining" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "BertForPreTraining"
    ]
    assert cli.main(["export", "--checkpoint", str(tmp_path / "absent"), "--out", str(tmp_path / "b")]) == 2
    assert "no usable checkpoint" in capsys.readouterr().err
    assert cli.main(["import", "--hf", str(tmp_path / "out"), "--out", str(tmp_path / "run")]) == 0
    assert "imported to" in capsys.readouterr().out
    words = ["generate", "--checkpoint", str(runs / "gpt"), "--prompt", "A", "--max-new-tokens", "2"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.startswith("A")
