"""Attributions and attention of an answer, against transformers' model with the same weights."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from transformers import AutoTokenizer, BertForSequenceClassification

from finetune.explain import explain, main
from finetune.export_hf import export
from pretrain.config import ConfigError
from tests.unit.finetune.test_conversion import architecture, write_run
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)

TEXT = "the value of <b>a list"


@pytest.fixture(scope="module")
def runs(tokenizer_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    for kind in ("classifier", "bert"):
        write_run(root / kind, architecture(kind, 900), tokenizer_model)
    return root


def test_attention_and_attributions_are_those_of_transformers_model(runs, tmp_path):
    found = explain(runs / "classifier", (TEXT, None), steps=100)
    export(runs / "classifier", tmp_path / "hf")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    encoded = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        out = model(**encoded, output_attentions=True)
    assert found.attention.shape == (2, 2, len(found.tokens), len(found.tokens))
    for ours, theirs in zip(found.attention, out.attentions, strict=True):
        assert np.allclose(ours, theirs[0].numpy(), atol=1e-5)
    probabilities = out.logits[0].softmax(-1)
    target = int(probabilities.argmax())
    assert found.output == model.config.id2label[target] == found.answer["label"]
    assert found.answer["score"] == pytest.approx(float(probabilities[target]), abs=1e-5)

    ids = encoded["input_ids"]
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
    empty = torch.where(special, ids, torch.full_like(ids, tokenizer.pad_token_id))
    gradients = LayerIntegratedGradients(
        lambda i: model(i, torch.ones_like(i)).logits[:, target], model.bert.embeddings.word_embeddings
    )
    wanted = gradients.attribute(ids, empty, n_steps=100)[0].sum(-1).numpy()
    assert np.allclose(found.attributions, wanted, atol=1e-4) and abs(wanted).max() > 0.01
    with torch.no_grad():
        apart = model(ids).logits[0, target] - model(empty).logits[0, target]
    assert found.attributions.sum() == pytest.approx(float(apart), abs=0.02)
    assert found.error == pytest.approx(abs(found.attributions.sum() - float(apart)), abs=1e-4)


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
    found = explain(runs / "classifier", (TEXT, None), "up", 8)
    assert data["tokens"] == found.tokens and found.tokens[0] == "[CLS]" and found.tokens[-1] == "[SEP]"
    assert np.allclose(steps / 255, found.attention, atol=0.5 / 255 + 1e-6)


def test_wrong_input_of_explain(runs):
    with pytest.raises(ConfigError, match="--label 'left': the model has 'down', 'up'"):
        explain(runs / "classifier", (TEXT, None), "left")
    with pytest.raises(ConfigError, match="answers single texts: leave --text-pair out"):
        explain(runs / "classifier", (TEXT, "another"))
    with pytest.raises(ConfigError, match="--text: must be text that is not blank"):
        explain(runs / "classifier", (" ", None))
    with pytest.raises(ConfigError, match="is a pretraining model"):
        explain(runs / "bert", (TEXT, None))
