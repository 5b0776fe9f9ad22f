"""Attributions and attention of an answer, against transformers' model with the same weights."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from finetune.explain import explain, main
from finetune.explain_subjects import Asked
from finetune.export_hf import export
from pretrain.config import ConfigError
from tests.unit.finetune.test_conversion import architecture, write_run
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)
from tests.unit.finetune.test_task_exports import write_task

TEXT = "the value of <b>a list"
LONG = " ".join(["the return value of a function is what a method of the class returns"] * 4)


@pytest.fixture(scope="module")
def runs(tokenizer_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    for kind in ("classifier", "bert", "gpt", "llama"):
        write_run(root / kind, architecture(kind, 900), tokenizer_model)
    for kind in ("tagging", "question_answering", "multiple_choice"):
        write_task(root / kind, kind, "post", tokenizer_model)
    return root


def require_captums(one, output, embeddings, ids, empty):
    """The attributions are captum's for transformers' model; their sum is off by what is told."""
    gradients = LayerIntegratedGradients(output, embeddings)
    wanted = gradients.attribute(ids, empty, n_steps=100)[0].sum(-1).numpy()
    assert np.allclose(one.values, wanted, atol=1e-4) and abs(wanted).max() > 0.01
    with torch.no_grad():
        apart = float(output(ids) - output(empty))
    assert one.values.sum() == pytest.approx(apart, abs=0.02)
    assert one.error == pytest.approx(abs(one.values.sum() - apart), abs=1e-4)


def require_attention(found, attentions):
    assert found.attention.shape == (2, 2, len(found.tokens), len(found.tokens))
    for ours, theirs in zip(found.attention, attentions, strict=True):
        assert np.allclose(ours, theirs[0].numpy(), atol=1e-5)


def load(kind, run, directory):
    export(run, directory)
    model = kind.from_pretrained(directory, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(directory)


def without_words(tokenizer, ids):
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
    return torch.where(special, ids, torch.full_like(ids, tokenizer.pad_token_id))


def test_attention_and_attributions_are_those_of_transformers_model(runs, tmp_path):
    found = explain(runs / "classifier", Asked(TEXT), steps=100)
    model, tokenizer = load(BertForSequenceClassification, runs / "classifier", tmp_path / "hf")
    encoded = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        out = model(**encoded, output_attentions=True)
    require_attention(found, out.attentions)
    probabilities = out.logits[0].softmax(-1)
    target = int(probabilities.argmax())
    (one,) = found.attributions
    assert one.output == model.config.id2label[target] == found.answer["label"]
    assert found.answer["score"] == pytest.approx(float(probabilities[target]), abs=1e-5)
    ids = encoded["input_ids"]
    require_captums(
        one,
        lambda i: model(i, torch.ones_like(i)).logits[:, target],
        model.bert.embeddings.word_embeddings,
        ids,
        without_words(tokenizer, ids),
    )


@pytest.mark.parametrize(("word", "label"), [(None, None), (3, None), (2, "O")])
def test_the_tag_of_a_word_is_explained(word, label, runs, tmp_path):
    words = ["the", "return", "value", "of", "statements"]
    found = explain(runs / "tagging", Asked(" ".join(words), word=word, label=label), steps=100)
    model, tokenizer = load(BertForTokenClassification, runs / "tagging", tmp_path / "hf")
    encoded = tokenizer(" ".join(words), return_tensors="pt", return_offsets_mapping=True)
    spans = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        out = model(**encoded, output_attentions=True)
    require_attention(found, out.attentions)
    starts = [len(" ".join(["", *words[:n]])) for n in range(len(words))]
    firsts = [next(n for n, (a, b) in enumerate(spans) if a <= start < b) for start in starts]
    probabilities = out.logits[0].softmax(-1)[firsts]
    if word is None:  # the surest of those that are not O, else of all
        sure, tags = probabilities.max(-1)
        word = 1 + max(range(len(words)), key=lambda n: (model.config.id2label[int(tags[n])] != "O", sure[n]))
    target = model.config.label2id[label] if label else int(probabilities[word - 1].argmax())
    (one,) = found.attributions
    assert one.output == f"{model.config.id2label[target]} for {words[word - 1]}"
    ids = encoded["input_ids"]
    require_captums(
        one,
        lambda i: model(i, torch.ones_like(i)).logits[:, firsts[word - 1], target],
        model.bert.embeddings.word_embeddings,
        ids,
        without_words(tokenizer, ids),
    )


def test_both_ends_of_an_answer_are_explained(runs, tmp_path):
    question, text = "what is it?", "the return value of a function"
    found = explain(runs / "question_answering", Asked(text, question=question), steps=100)
    model, tokenizer = load(BertForQuestionAnswering, runs / "question_answering", tmp_path / "hf")
    encoded = tokenizer(question, text, return_tensors="pt", return_offsets_mapping=True)
    spans = encoded.pop("offset_mapping")[0]
    with torch.no_grad():
        out = model(**encoded, output_attentions=True)
    require_attention(found, out.attentions)
    types = encoded["token_type_ids"]
    context = types[0].bool() & (spans[:, 1] > 0)
    allowed = (context[:, None] & context[None, :]).triu()
    scores = (out.start_logits[0][:, None] + out.end_logits[0][None, :]).masked_fill(~allowed, -torch.inf)
    ends = divmod(int(scores.argmax()), len(spans))
    shown = text[spans[ends[0], 0] : spans[ends[1], 1]].strip()
    assert [one.output for one in found.attributions] == [f"start of {shown}", f"end of {shown}"]
    ids = encoded["input_ids"]
    for one, place, name in zip(found.attributions, ends, ("start_logits", "end_logits"), strict=True):
        require_captums(
            one,
            lambda i, place=place, name=name: getattr(model(i, torch.ones_like(i), types.expand_as(i)), name)[
                :, place
            ],
            model.bert.embeddings.word_embeddings,
            ids,
            without_words(tokenizer, ids),
        )


def test_the_window_that_has_the_answer_is_explained(runs):
    found = explain(runs / "question_answering", Asked(LONG, question="what is it?"), steps=2)
    assert "windows; explained is number" in found.note and len(found.tokens) <= 48
    text = "".join(found.tokens)
    assert found.answer["answer"] in text.rpartition("?")[2]
    assert found.attributions[0].output == f"start of {found.answer['answer']}"


@pytest.mark.parametrize("kind", ["gpt", "llama"])
@pytest.mark.parametrize("choose", [False, True])
def test_the_next_token_of_a_gpt_is_explained(kind, choose, runs, tmp_path):
    prompt = "the return value of"
    model, tokenizer = load(AutoModelForCausalLM, runs / kind, tmp_path / "hf")
    label = " the" if choose else None
    found = explain(runs / kind, Asked(prompt, label=label), steps=100)
    encoded = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        out = model(**encoded, output_attentions=True)
    require_attention(found, out.attentions)
    probabilities = out.logits[0, -1].softmax(-1)
    best = int(probabilities.argmax())
    assert found.answer["score"] == pytest.approx(float(probabilities[best]), abs=1e-5)
    target = tokenizer(label, add_special_tokens=False)["input_ids"][0] if choose else best
    (one,) = found.attributions
    assert one.output == tokenizer.decode([target])
    ids = encoded["input_ids"]
    require_captums(
        one,
        lambda i: model(i).logits[:, -1, target],
        model.get_input_embeddings(),
        ids,
        torch.full_like(ids, tokenizer.eos_token_id),
    )


def test_the_page_stands_alone_and_text_stays_text(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    words = ["--checkpoint", str(runs / "classifier"), "--text", TEXT, "--label", "up", "--steps", "8"]
    assert main([*words, "--out", str(out)]) == 0
    assert "what up rests on is in" in capsys.readouterr().out
    content = out.read_text()
    assert "<b>a" not in content and "http" not in content and "<h1>up</h1>" in content
    data = json.loads(re.search(r'id="data">(.*?)</script>', content)[1])
    size = len(data["tokens"])
    steps = np.frombuffer(base64.b64decode(data["attention"]), np.uint8).reshape(2, 2, size, size)
    found = explain(runs / "classifier", Asked(TEXT, label="up"), 8)
    assert data["tokens"] == found.tokens and found.tokens[0] == "[CLS]" and found.tokens[-1] == "[SEP]"
    assert np.allclose(steps / 255, found.attention, atol=0.5 / 255 + 1e-6)


def test_the_page_has_both_ends_of_an_answer(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    words = ["--checkpoint", str(runs / "question_answering"), "--text", TEXT, "--question", "what <i>?"]
    assert main([*words, "--steps", "2", "--out", str(out)]) == 0
    printed, content = capsys.readouterr().out, out.read_text()
    assert "what start of" in printed and " and end of " in printed and "n_best" not in printed
    assert content.count("Green tokens raise the output") == 2 and "<i>" not in content
    assert main(["--checkpoint", str(runs / "gpt"), "--text", "the", "--steps", "2", "--out", f"{out}2"]) == 0
    assert "a text of end-of-text tokens" in (tmp_path / "page.html2").read_text()


@pytest.mark.parametrize(
    ("run", "asked", "message"),
    [
        ("classifier", Asked(TEXT, label="left"), "--label 'left': the model has 'down', 'up'"),
        ("classifier", Asked(TEXT, "another"), "answers single texts: leave --text-pair out"),
        ("classifier", Asked(" "), "--text: must be text that is not blank"),
        ("classifier", Asked(TEXT, word=1), "--word is not for .* a model for classification"),
        ("bert", Asked(TEXT), "is a pretraining model"),
        ("multiple_choice", Asked(TEXT), "is a model for multiple_choice; explained are classification"),
        ("tagging", Asked("two words", word=3), "--word 3: the text has 2 words"),
        ("tagging", Asked(LONG, word=50), "--word 50: 'what' is not read"),
        ("tagging", Asked(TEXT, label="B-Y"), "--label 'B-Y': the model has 'O', 'B-X'"),
        ("question_answering", Asked(TEXT), "answers questions: give --question"),
        ("question_answering", Asked(TEXT, question=" "), "--question: must be text that is not blank"),
        ("question_answering", Asked(TEXT, question="x", label="O"), "--label is not for"),
        ("gpt", Asked(TEXT, question="who?"), "--question is not for .* a model for gpt"),
        ("gpt", Asked(TEXT, label="the return"), "--label 'the return': must be one token"),
        ("gpt", Asked(LONG), "do not fit into the model's context of 48"),
    ],
)
def test_wrong_input_of_explain(run, asked, message, runs):
    with pytest.raises(ConfigError, match=message):
        explain(runs / run, asked)
