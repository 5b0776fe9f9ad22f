"""Each task's model, post-norm and pre-norm, in transformers: the classes, the logits, the pipelines."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, pipeline

from finetune import predict
from finetune.export_hf import export
from finetune.kinds import Architecture, build
from finetune.single_rank import single_rank
from finetune.source import write_weights
from finetune.task_config import (
    ClassificationTask,
    MultipleChoiceTask,
    QuestionAnsweringTask,
    TaggingTask,
)
from pretrain.config.section import Section
from tests.unit.finetune.test_conversion import architecture

CLASSES = {
    "classification": "ForSequenceClassification",
    "tagging": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
}
SECTIONS = {
    "classification": ClassificationTask(kind="classification"),
    "tagging": TaggingTask(kind="tagging"),
    "question_answering": QuestionAnsweringTask(kind="question_answering", stride=4),
    "multiple_choice": MultipleChoiceTask(kind="multiple_choice"),
}
WORDS = ["the", "return", "value", "of", "a", "function"]
ROWS = {
    "classification": {"text": " ".join(WORDS)},
    "tagging": {"words": WORDS},
    "question_answering": {"question": "what is it?", "context": " ".join(WORDS)},
    "multiple_choice": {"text": "the return", "choices": ["value", "of a function", "class"]},
}


class SavedConfig(Section):
    """What a finetuning run saves of its model and task."""

    model: Any
    task: Any
    batch: dict[str, int]


def write_task(run_dir, kind, norm, tokenizer_model, **batch):
    """A checkpoint of random weights of a model for a task."""
    model = architecture("bert", 900).model.model_copy(update={"norm_position": norm})
    labels = ("O", "B-X") if SECTIONS[kind].has_labels else None
    of = Architecture(model, labels, SECTIONS[kind])
    torch.manual_seed(3)
    with single_rank():
        fresh = build(of)
    parameters = {name: p + 0.1 * torch.randn_like(p) for name, p in fresh.named_parameters()}
    config = SavedConfig(model=model, task=SECTIONS[kind], batch=batch)
    write_weights(run_dir, of, parameters, config, {"tokenizer.model": tokenizer_model})


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("kind", list(CLASSES))
def test_predictions_are_transformers(kind, norm, tokenizer_model, tmp_path):
    write_task(tmp_path / "run", kind, norm, tokenizer_model)
    told = export(tmp_path / "run", tmp_path / "exported")
    name = {"post": "Bert", "pre": "MegatronBert"}[norm] + CLASSES[kind]
    assert any(f"logits of {name} and of our model differ by at most" in line for line in told)
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["architectures"] == [name]
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[kind]) + "\n")
    predict.predict(tmp_path / "run", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", 4)
    found = json.loads((tmp_path / "out.jsonl").read_text())["prediction"]
    model = getattr(transformers, name).from_pretrained(tmp_path / "exported").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    if kind == "classification":
        (theirs,) = pipeline("text-classification", model=model, tokenizer=tokenizer)([" ".join(WORDS)])
        assert found == {"label": theirs["label"], "score": pytest.approx(theirs["score"], abs=1e-4)}
    elif kind == "tagging":
        pieces = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[])(
            " ".join(WORDS)
        )
        starts = [len(" ".join(["", *WORDS[:n]])) for n in range(len(WORDS))]
        firsts = [next(p for p in pieces if p["start"] <= start < p["end"]) for start in starts]
        assert found["tags"] == [piece["entity"] for piece in firsts]
        assert found["scores"] == pytest.approx([float(p["score"]) for p in firsts], abs=1e-4)
    elif kind == "multiple_choice":
        row = ROWS[kind]
        encoded = tokenizer([row["text"]] * 3, row["choices"], return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**{key: value[None] for key, value in encoded.items()}).logits[0]
        assert found["scores"] == pytest.approx(logits.softmax(0).tolist(), abs=1e-4)
    else:
        row = ROWS[kind]
        encoded = tokenizer(row["question"], row["context"], return_tensors="pt", return_offsets_mapping=True)
        spans = encoded.pop("offset_mapping")[0]
        with torch.no_grad():
            out = model(**encoded)
        context = encoded["token_type_ids"][0].bool() & (spans[:, 1] > 0)
        allowed = (context[:, None] & context[None, :]).triu()
        scores = (out.start_logits[0][:, None] + out.end_logits[0][None, :]).masked_fill(~allowed, -torch.inf)
        first, last = divmod(int(scores.argmax()), len(spans))
        assert found["answer"] == row["context"][spans[first, 0] : spans[last, 1]].strip()


def test_a_long_text_is_cut_where_the_run_cut_it(tokenizer_model, tmp_path):
    write_task(tmp_path / "run", "classification", "post", tokenizer_model, seq_length=6)
    export(tmp_path / "run", tmp_path / "exported")
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS["classification"]) + "\n")
    predict.predict(tmp_path / "run", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", 4)
    found = json.loads((tmp_path / "out.jsonl").read_text())["prediction"]
    classify = pipeline("text-classification", model=str(tmp_path / "exported"), device="cpu")
    assert classify.tokenizer.model_max_length == 6
    (theirs,) = classify([" ".join(WORDS)], truncation=True)
    (whole,) = classify([" ".join(WORDS)])
    assert found == {"label": theirs["label"], "score": pytest.approx(theirs["score"], abs=1e-4)}
    assert whole["score"] != pytest.approx(theirs["score"], abs=1e-3)
