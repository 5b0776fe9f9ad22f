"""Conversations, heads, embeddings, and checkpoints that do not fit what is asked of them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import yaml
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from data_tools.errors import DataError
from data_tools.tokenizer import load_tokenizer
from finetune import embed, evaluate, generate, predict
from finetune.export_hf import export
from finetune.rows import Record
from finetune.source import read_source
from finetune.tasks.chat import messages_of, prompt_of, turns
from pretrain.checkpoint import CheckpointError
from pretrain.checkpoint.files import fingerprint
from pretrain.checkpoint.manifest import read_manifest, write_manifest
from pretrain.config import ConfigError
from tests.unit.finetune.test_conversion import architecture, write_run
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)
from tests.unit.finetune.test_task_runs import FRUIT, models, run, sentences, write_config  # noqa: F401

CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_conversations_are_trained_exported_and_answered(models, tmp_path):  # noqa: F811
    config = write_config(tmp_path, models, "sft")
    for name, count in (("train", 160), ("validation", 20)):
        with (tmp_path / f"{name}.jsonl").open("w") as lines:
            for words, at in sentences(count, name):
                answer = " fruit" if words[at] in FRUIT else " tool"
                turns = [("user", words[at]), ("assistant", answer), ("user", "again"), ("assistant", answer)]
                messages = [{"role": role, "content": content} for role, content in turns]
                lines.write(json.dumps({"chat": messages}) + "\n")
    template = tmp_path / "template.yaml"
    content = yaml.safe_load(config.read_text())
    content["task"]["chat_template"] = CHAT.replace("> {{ m.content }}", ">{{ m.content }}")
    content["data"]["messages"] = "chat"
    template.write_text(yaml.safe_dump(content))
    assert run(template, "training.train_steps=80") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["n"] == 40 and results["perplexity"] < 1.5  # a row for each answer
    answers = tmp_path / "answers.jsonl"
    assert predict.predict(tmp_path / "run", tmp_path / "validation.jsonl", answers, 8) == 20
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert sum(row["prediction"]["response"] == row["chat"][-1]["content"] for row in rows) > 16

    # transformers writes the same prompts as we trained with, and the same answers.
    assert any("chat template" in line for line in export(tmp_path / "run", tmp_path / "exported"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    for row in rows[:4]:
        ids = tokenizer.apply_chat_template(
            row["chat"][:-1], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        written = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == row["prediction"]["response"]


def test_a_head_is_kept_for_the_same_labels_and_refused_for_others(models, tmp_path):  # noqa: F811
    config = write_config(tmp_path, models, "classification")
    assert run(config, "training.train_steps=2") == 0
    trained = read_source(tmp_path / "run").parameters["head.weight"]
    on = [f"pretrained={tmp_path / 'run'}", "training.train_steps=1", "optimizer.lr=1e-9"]
    assert run(config, *on, f"run_dir={tmp_path / 'on'}") == 0
    assert torch.allclose(read_source(tmp_path / "on").parameters["head.weight"], trained, atol=1e-6)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": t, "label": t}) + "\n" for t in "abc"))
    settings = [*on, f"data.train={other}", f"data.validation={other}", f"run_dir={tmp_path / 'third'}"]
    with pytest.raises(ConfigError, match="2 labels: 'fruit', 'tool'; data.train has 3: 'a', 'b', 'c'"):
        run(config, *settings)
    assert not (tmp_path / "third").exists()
    assert run(config, *settings, "new_head=true") == 0
    assert read_source(tmp_path / "third").parameters["head.weight"].shape[0] == 3


def test_a_kept_head_keeps_the_order_of_its_labels(models, tokenizer_model, tmp_path):  # noqa: F811
    of = dataclasses.replace(architecture("classifier", 900), labels=("tool", "fruit"))
    write_run(tmp_path / "theirs", of, tokenizer_model)
    config = write_config(tmp_path, models, "classification")
    on = [f"pretrained={tmp_path / 'theirs'}", "training.train_steps=1", "optimizer.lr=1e-9"]
    assert run(config, *on) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["labels"] == ["tool", "fruit"]
    before, after = (read_source(tmp_path / name) for name in ("theirs", "run"))
    assert after.architecture.labels == ("tool", "fruit")
    assert torch.allclose(after.parameters["head.weight"], before.parameters["head.weight"], atol=1e-6)


def test_a_checkpoint_whose_labels_or_tokenizer_are_of_another_model(models, tokenizer_model, tmp_path):  # noqa: F811
    of = architecture("classifier", load_tokenizer(tokenizer_model).vocab_size)
    three = dataclasses.replace(of, labels=("a", "b", "c"))
    write_run(tmp_path / "labels", three, tokenizer_model)
    checkpoint = tmp_path / "labels" / "checkpoints" / "step-00000000"
    manifest = read_manifest(checkpoint)
    (checkpoint / "labels.json").write_text('["a", "b"]')
    manifest["files"]["labels.json"] = fingerprint(checkpoint / "labels.json")
    write_manifest(checkpoint, manifest)
    with pytest.raises(CheckpointError, match="labels.json names 2 labels, the head has 3 outputs"):
        evaluate.main(["--checkpoint", str(tmp_path / "labels"), "--data", "x.jsonl"])
    write_run(tmp_path / "small", architecture("bert", 500), tokenizer_model)
    config = write_config(tmp_path, models, "classification")
    with pytest.raises(
        CheckpointError, match="tokenizer has 900 pieces, its model 500; it is the tokenizer of"
    ):
        run(config, f"pretrained={tmp_path / 'small'}")
    for command in (embed, generate):
        words = ["--input", "x", "--out", "y"] if command is embed else ["--prompt", "x"]
        kind = "bert" if command is embed else "gpt"
        write_run(tmp_path / f"{kind}-small", architecture(kind, 500), tokenizer_model)
        source = config.parent / "train.jsonl"
        words = [str(source) if word == "x" and command is embed else word for word in words]
        with pytest.raises(CheckpointError, match="of another model"):
            command.main(["--checkpoint", str(tmp_path / f"{kind}-small"), *words])


def test_contexts_longer_than_the_model_are_told(models, tmp_path):  # noqa: F811
    config = write_config(tmp_path, models, "sft")
    with pytest.raises(ConfigError, match="batch.seq_length: 64 is longer than the 48 positions"):
        run(config, "batch.seq_length=64")
    with pytest.raises(
        DataError, match=r"train.jsonl:1: the prompt has \d+ tokens, batch.seq_length: 2 leaves"
    ):
        run(config, "batch.seq_length=2")
    assert run(config, "training.train_steps=1") == 0
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "value " * 100}) + "\n")
    with pytest.raises(ConfigError, match="long.jsonl:1: the prompt has .* the model's context of 48"):
        predict.predict(tmp_path / "run", long, tmp_path / "out.jsonl", 8)
    assert not (tmp_path / "out.jsonl").exists()


def test_embeddings_are_transformers_masked_mean(models, tmp_path, capsys):  # noqa: F811
    texts = ["the return statement", "value", "a class is an object of a module " * 9]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in texts))
    export(models / "bert", tmp_path / "exported")
    model = AutoModel.from_pretrained(tmp_path / "exported")
    encoded = AutoTokenizer.from_pretrained(tmp_path / "exported")(
        texts, return_tensors="pt", padding=True, truncation=True
    )
    assert encoded["input_ids"].shape[1] == 48
    with torch.no_grad():
        hidden = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None]
    wanted = {"mean": (hidden * mask).sum(1) / mask.sum(1), "cls": hidden[:, 0]}
    for pooling in wanted:
        for normalize in (False, True):
            out = tmp_path / f"{pooling}-{normalize}.jsonl"
            words = ["--checkpoint", models / "bert", "--input", tmp_path / "texts.jsonl", "--out", out]
            extra = ["--pooling", pooling, *(["--normalize"] if normalize else [])]
            assert embed.main([*map(str, words), *extra]) == 0
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            assert [row["text"] for row in rows] == texts
            found = torch.tensor([row["embedding"] for row in rows])
            right = torch.nn.functional.normalize(wanted[pooling]) if normalize else wanted[pooling]
            assert torch.allclose(found, right, atol=1e-5), (pooling, normalize)
    with pytest.raises(ConfigError, match="is a gpt; embeddings are a bert's"):
        embed.main(
            [*map(str, ["--checkpoint", models / "gpt", "--input", tmp_path / "texts.jsonl"]), "--out", "x"]
        )


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "must be a list of messages, not 'hello'|must be a list of messages"),
        ([], "must be a list of messages"),
        ([{"role": "user"}], "message 0 must be"),
        ([{"role": "user", "content": "x \ue000end of text\ue000"}], "message 0 must be"),
    ],
)
def test_bad_conversations_are_named(messages, message):
    with pytest.raises(DataError, match=rf"f.jsonl:3: .*({message})"):
        messages_of(Record("f.jsonl:3", {"chat": messages}), "chat")


def test_templates_that_a_model_cannot_follow_are_refused():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert turns(CHAT, messages, "f:1") == [("<user> a<assistant>", " b")]
    with pytest.raises(DataError, match="f:1: no message of the role 'assistant'"):
        turns(CHAT, messages[:1], "f:1")
    with pytest.raises(ConfigError, match="task.chat_template: what it writes with add_generation_prompt"):
        turns(
            "{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}{{ messages|length }}",
            messages,
            "f",
        )
    with pytest.raises(ConfigError, match="cannot write the conversation at f: "):
        turns("{{ }", messages, "f")
    with pytest.raises(ConfigError, match="bos_token"):
        turns("{{ bos_token }}", messages, "f")


def test_chat_template_and_messages_belong_together(models, tmp_path):  # noqa: F811
    config = write_config(tmp_path, models, "sft")
    with pytest.raises(ConfigError, match="belong together"):
        run(config, "data.messages=chat")
    with pytest.raises(ConfigError, match="task.template is for data.prompt"):
        run(config, "data.messages=chat", "task.chat_template=x", "task.template=Q {prompt}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ 2.0 ** 5000 }}", "OverflowError"),
        ("{{ '%d' % messages[0].content }}", "TypeError"),
        ("{{ messages[0].content.index('z') }}", "ValueError: substring not found"),
        ("{{ messages.pop(5) }}", "attribute 'pop' of 'list' object is unsafe"),
        ("{{ '{a}'.format() }}", "KeyError: 'a'"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ 'a' * 10 ** 18 }}", "MemoryError|OverflowError"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages[0].content.nothing.more }}", "has no attribute 'nothing'"),
    ],
)
def test_an_error_inside_of_a_template_is_told_with_the_conversation(template, message):
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(
        ConfigError, match=rf"task.chat_template: cannot write the conversation at f:3: .*({message})"
    ):
        prompt_of(template, conversation, "f:3")
