"""Export, import and generate, from checkpoint directories to what a user of transformers sees."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
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
from finetune import export_hf, kinds
from finetune.config import ImportedConfig
from finetune.errors import ConversionError
from finetune.generate import generate
from finetune.import_hf import import_hf
from finetune.kinds import Architecture, build
from finetune.sampling import SamplingOptions
from finetune.single_rank import single_rank
from finetune.source import read_source, write_weights
from finetune.task_config import ClassificationTask
from finetune.text import open_text_codec
from launch import cli
from pretrain.checkpoint import CheckpointError
from pretrain.config import ConfigError
from pretrain.config.model import BertModelConfig, GPTModelConfig

LLAMA_STYLE = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "num_query_groups": 1,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "hidden_dropout": 0.0,
}
SMALL_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
}
KINDS = ("gpt", "llama", "bert", "megatron-mlm", "classifier")


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
    if kind == "llama":
        return Architecture(GPTModelConfig(kind="gpt", **sizes, **LLAMA_STYLE))
    if kind == "megatron-mlm":
        sizes |= {"norm_position": "pre", "add_binary_head": False}
    bert = Architecture(BertModelConfig(kind="bert", **sizes))
    return dataclasses.replace(bert, labels=("down", "up")) if kind == "classifier" else bert


def write_run(run_dir, of, tokenizer_model):
    """A run directory with one checkpoint of random weights."""
    torch.manual_seed(3)
    with single_rank():
        model = build(of)
    parameters = {name: p + 0.05 * torch.randn_like(p) for name, p in model.named_parameters()}
    task = ClassificationTask(kind="classification") if of.labels else None
    config = ImportedConfig(imported_from="test", model=of.model, task=task)
    write_weights(run_dir, of, parameters, config, {"tokenizer.model": tokenizer_model})


@pytest.fixture(scope="module")
def runs(tokenizer_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    vocab_size = load_tokenizer(tokenizer_model).vocab_size
    for kind in KINDS:
        write_run(root / kind, architecture(kind, vocab_size), tokenizer_model)
    return root


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    told = {kind: export_hf.export(runs / kind, root / kind) for kind in KINDS}
    for lines in told.values():
        assert "same ids as ours" in lines[0] and "differ by at most" in lines[1]
    return root


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_generate_writes_what_transformers_writes(kind, runs, exported):
    prompt = "The return statement"
    model = AutoModelForCausalLM.from_pretrained(exported / kind)
    tokenizer = AutoTokenizer.from_pretrained(exported / kind)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    encoded = tokenizer(prompt, return_tensors="pt")
    wanted = model.generate(**encoded, max_new_tokens=20, do_sample=False)[0]
    text = generate(runs / kind, prompt, 20, SamplingOptions())
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
    with pytest.raises(ConfigError, match="do not fit into the model's context of 48"):
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


@pytest.mark.parametrize("kind", KINDS)
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
    codec = open_text_codec(read_source(tmp_path / "run").directory, 900)
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
        links = kinds.gpt2_links(model)
        return [
            dataclasses.replace(
                x, theirs=tuple(".".join(names.get(p, p) for p in t.split(".")) for t in x.theirs)
            )
            for x in links
        ]

    monkeypatch.setattr(kinds, "GPT2", dataclasses.replace(kinds.GPT2, links=swapped))
    with pytest.raises(ConversionError, match="GPT2LMHeadModel and of our model differ by"):
        export_hf.export(runs / "gpt", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_gpt_between_the_styles_generates_but_is_not_exported(runs, tokenizer_model, tmp_path):
    of = architecture("gpt", load_tokenizer(tokenizer_model).vocab_size)
    mixed = Architecture(of.model.model_copy(update={"normalization": "RMSNorm"}))
    write_run(tmp_path / "mixed", mixed, tokenizer_model)
    assert generate(tmp_path / "mixed", "A", 2, SamplingOptions()).startswith("A")
    with pytest.raises(ConfigError, match="normalization: RMSNorm has no counterpart"):
        export_hf.export(tmp_path / "mixed", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="exists"):
        export_hf.export(runs / "gpt", tmp_path / "mixed")


THEIRS = {
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=48),
    "llama": transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=48,
    ),
    "bert": BertConfig(**SMALL_BERT),
    "megatron-bert": transformers.MegatronBertConfig(**SMALL_BERT),
}
CLASSES = {
    "GPT2LMHeadModel": "gpt2",
    "LlamaForCausalLM": "llama",
    "BertForPreTraining": "bert",
    "BertForMaskedLM": "bert",
    "MegatronBertForPreTraining": "megatron-bert",
    "MegatronBertForMaskedLM": "megatron-bert",
}


@pytest.mark.parametrize("name", CLASSES)
def test_import_and_export_give_every_tensor_back(name, exported, tmp_path):
    """Bit by bit, from files in several shards to others, with the tokenizer and the special ids."""
    torch.manual_seed(5)
    config = copy.deepcopy(THEIRS[CLASSES[name]])
    config.vocab_size, config.bos_token_id, config.eos_token_id = 900, 3, 2
    original = getattr(transformers, name)(config)
    for parameter in original.parameters():
        parameter.data.normal_()
    original.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(exported / "gpt" / file, tmp_path / "theirs" / file)
    import_hf(tmp_path / "theirs", tmp_path / "run")
    export_hf.export(tmp_path / "run", tmp_path / "back", "50KB")
    assert (tmp_path / "back" / "model.safetensors.index.json").is_file()
    back = getattr(transformers, name).from_pretrained(tmp_path / "back")
    wanted, found = original.state_dict(), back.state_dict()
    assert wanted.keys() == found.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key
    assert AutoTokenizer.from_pretrained(tmp_path / "back")("a return")["input_ids"]


def test_the_model_card_tells_what_is_known(runs, exported, tmp_path):
    text = (exported / "llama" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "text-generation"
    assert (
        "| num_query_groups | 1 |" in body
        and "LlamaForCausalLM and of our model differ by" in body.replace("Logits", "logits")
    )
    assert "tokens" not in body and "loss" not in body  # an imported model: nobody knows
    trained = tmp_path / "run"
    shutil.copytree(runs / "gpt", trained)
    rows = [{"step": 0, "loss": 9.5, "consumed_tokens": 4096}, {"step": 1, "loss": 8.0, "consumed_tokens": 1}]
    (trained / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 0, "lo'
    )
    export_hf.export(trained, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| tokens | 4,096 |" in card and "| loss | 9.5000 |" in card


def tampered(exported, directory, change):
    """An exported BERT whose weights lie in a pickle, changed."""
    shutil.copytree(exported / "bert", directory)
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    change(state)
    torch.save(state, directory / "pytorch_model.bin")
    return directory


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload-ran",)


def test_pickled_weights_load_but_never_run_code(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import_hf(tampered(exported, tmp_path / "plain", lambda state: None), tmp_path / "run")
    bad = tampered(exported, tmp_path / "bad", lambda state: state.update(extra=Payload()))
    with pytest.raises(ConfigError, match="cannot load the weights"):
        import_hf(bad, tmp_path / "other")
    assert not (tmp_path / "payload-ran").exists()


def test_code_beside_the_weights_is_never_run(exported, tmp_path):
    custom = tmp_path / "custom"
    shutil.copytree(exported / "bert", custom)
    config = json.loads((custom / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (custom / "config.json").write_text(json.dumps(config))
    (custom / "mine.py").write_text(f"import os; os.mkdir({str(tmp_path / 'payload-ran')!r})")
    with pytest.raises(ConfigError, match="not a Hugging Face model directory"):
        import_hf(custom, tmp_path / "run")
    assert not (tmp_path / "payload-ran").exists()


def test_half_a_download_is_refused(exported, tmp_path):
    lost = tampered(
        exported, tmp_path / "lost", lambda state: state.pop("bert.encoder.layer.1.output.dense.weight")
    )
    with pytest.raises(ConfigError, match="have no bert.encoder.layer.1.output.dense.weight"):
        import_hf(lost, tmp_path / "run")
    told = import_hf(
        tampered(exported, tmp_path / "more", lambda state: state.update({"qa.weight": torch.ones(1)})),
        tmp_path / "run",
    )
    assert any("no part of BertForPreTraining, so left out: qa" in line for line in told)


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
