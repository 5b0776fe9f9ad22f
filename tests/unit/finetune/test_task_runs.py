"""Every task from files to scores, answers and kept checkpoints, as a user runs it."""

from __future__ import annotations

import csv
import json
import random
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    pipeline,
)

from data_tools.errors import DataError
from finetune import evaluate, predict, train
from finetune.config import SelectionConfig
from finetune.export_hf import export
from finetune.selection import Selection
from finetune.source import read_source
from pretrain.config import ConfigError
from tests.unit.finetune.test_conversion import architecture, write_run
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)

WORDS = "the return statement value function class object name module string list number".split()
FRUIT, TOOL = ("apple", "pear", "plum"), ("saw", "file", "drill")


@pytest.fixture(scope="module")
def models(tokenizer_model, codec, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in ("bert", "gpt"):
        write_run(root / kind, architecture(kind, codec.vocab_size), tokenizer_model)
    return root


def sentences(count, seed):
    """Words in random order with one fruit or tool among them, and its place."""
    choose = random.Random(seed)
    for _ in range(count):
        words = choose.choices(WORDS, k=5)
        at = choose.randrange(5)
        words[at] = choose.choice(FRUIT + TOOL)
        yield words, at


def write_data(path, kind, count, seed):
    """Rows whose label follows from the one fruit or tool in them."""
    with path.open("w", encoding="utf-8") as lines:
        if kind == "multi_label":
            table = csv.writer(lines)
            table.writerow(["text", "labels"])
            for words, at in sentences(count, seed):
                table.writerow([" ".join(words), "fruit|food" if words[at] in FRUIT else ""])
            return
        for words, at in sentences(count, seed):
            fruit, text = words[at] in FRUIT, " ".join(words)
            row = {
                "classification": {"text": text, "second": text, "label": "fruit" if fruit else "tool"},
                "regression": {"text": text, "label": 1.0 if fruit else -1.0},
                "question_answering": {
                    "question": "which thing?",
                    "context": text,
                    "answers": [{"text": words[at], "answer_start": len(" ".join(["", *words[:at]]))}],
                },
                "multiple_choice": {
                    "text": text,
                    "choices": [FRUIT[at % 3], TOOL[at % 3]][:: 1 if at % 2 else -1],
                    "label": at % 2 if not fruit else 1 - at % 2,
                },
                "sft": {"prompt": text, "response": " fruit" if fruit else " tool"},
            }
            if kind == "tagging":
                tags = ["O"] * 5
                tags[at] = "B-FRUIT" if fruit else "B-TOOL"
                lines.write("".join(f"{w} {t}\n" for w, t in zip(words, tags, strict=True)) + "\n")
            else:
                lines.write(json.dumps(row[kind]) + "\n")


ENDINGS = {"multi_label": "csv", "tagging": "conll"}
EXTRA = {
    "classification": {"data.text_pair": "second", "task.class_weights": "balanced"},
    "question_answering": {"task.stride": "4", "task.max_question_tokens": "16"},
    "sft": {"task.packing": "true"},
}
SCORE = {
    "classification": ("accuracy", 0.9),
    "multi_label": ("exact_match", 0.9),
    "regression": ("pearson", 0.8),
    "multiple_choice": ("accuracy", 0.8),
    "tagging": ("f1", 0.8),
    "question_answering": ("f1", 0.8),
}


def write_config(root, models, kind):
    ending = ENDINGS.get(kind, "jsonl")
    for name, count in (("train", 160), ("validation", 37)):
        write_data(root / f"{name}.{ending}", kind, count, seed=name)
    content = {
        "run_dir": str(root / "run"),
        "pretrained": str(models / ("gpt" if kind == "sft" else "bert")),
        "task": {"kind": kind},
        "data": {name: str(root / f"{name}.{ending}") for name in ("train", "validation")},
        "batch": {"micro_batch_size": 16, "global_batch_size": 16, "seq_length": 48},
        "optimizer": {"lr": 3e-3},
        "schedule": {"kind": "constant"},
        "precision": "fp32",
        "training": {"train_steps": 60, "log_interval": 20, "eval_interval": 0},
    }
    path = root / "finetune.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(config, *overrides):
    return train.main(["--config", str(config), *(word for text in overrides for word in ("--set", text))])


@pytest.mark.parametrize("kind", [*SCORE, "sft"])
def test_a_task_learns_and_its_commands_agree(kind, models, tmp_path, capsys):
    config = write_config(tmp_path, models, kind)
    assert run(config, *(f"{key}={value}" for key, value in EXTRA.get(kind, {}).items())) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["n"] == 37
    if kind == "sft":
        assert results["perplexity"] < 1.5
        prompts, answers = tmp_path / "validation.jsonl", tmp_path / "answers.jsonl"
        assert predict.predict(tmp_path / "run", prompts, answers, 8) == 37
        rows = [json.loads(line) for line in answers.read_text().splitlines()]
        assert sum(row["prediction"]["response"] == row["response"] for row in rows) > 30
        return
    name, least = SCORE[kind]
    assert results[name] > least, results

    scores = tmp_path / "scores"
    assert evaluate.main(["--checkpoint", str(tmp_path / "run"), "--out", str(scores)]) == 0
    again = json.loads((scores / "metrics.json").read_text())
    for key in ("loss", name):
        assert again[key] == pytest.approx(results[key], rel=1e-5), key
    assert (scores / "confusion.png").is_file() == (kind == "classification")

    source, answers = next(tmp_path.glob("validation.*")), tmp_path / "answers.jsonl"
    assert (
        predict.main(["--checkpoint", str(tmp_path / "run"), "--input", str(source), "--out", str(answers)])
        == 0
    )
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 37
    right = {
        "classification": lambda row: row["prediction"]["label"] == row["label"],
        "multi_label": lambda row: (
            set(row["prediction"]["labels"]) == set(filter(None, row["labels"].split("|")))
        ),
        "regression": lambda row: (row["prediction"]["value"] > 0) == (row["label"] > 0),
        "multiple_choice": lambda row: row["prediction"]["choice"] == row["label"],
        "tagging": lambda row: len(row["prediction"]["tags"]) == len(row["words"]),
        "question_answering": lambda row: row["prediction"]["answer"] == row["answers"][0]["text"],
    }[kind]
    share = sum(map(right, rows)) / 37
    assert share >= 0.8
    if kind in ("classification", "multi_label", "multiple_choice"):
        assert share == pytest.approx(results[name])
    check_export(kind, tmp_path / "run", rows, tmp_path / "exported")
    errors = (scores / "errors.jsonl").read_text().splitlines()
    wrong = round(37 * (1 - results[name]))
    if kind in ("classification", "multi_label", "multiple_choice"):
        assert len(errors) == wrong


def check_export(kind, run_dir, rows, exported):
    """The exported directory gives the same predictions with nothing but transformers."""
    told = export(run_dir, exported)
    assert any("differ by at most" in line for line in told)
    predictions = [row["prediction"] for row in rows]
    if kind == "question_answering":  # transformers 5 has no pipeline for it
        model = AutoModelForQuestionAnswering.from_pretrained(exported)
        tokenizer = AutoTokenizer.from_pretrained(exported)
        for row, prediction in zip(rows[:8], predictions, strict=False):
            encoded = tokenizer(
                row["question"], row["context"], return_tensors="pt", return_offsets_mapping=True
            )
            spans = encoded.pop("offset_mapping")[0]
            with torch.no_grad():
                out = model(**encoded)
            context = encoded["token_type_ids"][0].bool() & (spans[:, 1] > 0)
            scores = out.start_logits[0][:, None] + out.end_logits[0][None, :]
            allowed = (context[:, None] & context[None, :]).triu()
            best = int(scores.masked_fill(~allowed, -torch.inf).argmax())
            first, last = divmod(best, len(spans))
            assert row["context"][spans[first, 0] : spans[last, 1]].strip() == prediction["answer"]
        return
    if kind == "multiple_choice":  # nor for this
        model = AutoModelForMultipleChoice.from_pretrained(exported)
        tokenizer = AutoTokenizer.from_pretrained(exported)
        for row, prediction in zip(rows[:8], predictions, strict=False):
            encoded = tokenizer([row["text"]] * 2, row["choices"], return_tensors="pt", padding=True)
            with torch.no_grad():
                logits = model(**{name: value[None] for name, value in encoded.items()}).logits[0]
            assert prediction["scores"] == pytest.approx(logits.softmax(0).tolist(), abs=1e-4)
            assert prediction["text"] == row["choices"][int(logits.argmax())]
        return
    if kind == "tagging":
        tag = pipeline("token-classification", model=str(exported), device="cpu", ignore_labels=[])
        for row, prediction in zip(rows[:8], predictions, strict=False):
            text, starts = " ".join(row["words"]), []
            for word in row["words"]:
                starts.append(text.index(word, starts[-1] + 1 if starts else 0))
            pieces = tag(text)
            for start, wanted, score in zip(starts, prediction["tags"], prediction["scores"], strict=True):
                (piece,) = [p for p in pieces if p["start"] <= start < p["end"]]
                assert (piece["entity"], piece["score"]) == (wanted, pytest.approx(score, abs=1e-4))
        return
    classify = pipeline("text-classification", model=str(exported), device="cpu", top_k=None)
    for row, prediction in zip(rows[:8], predictions, strict=False):
        text = {"text": row["text"], "text_pair": row["second"]} if kind == "classification" else row["text"]
        found = {answer["label"]: answer["score"] for answer in classify([text])[0]}
        if kind == "classification":
            label = max(found, key=lambda name: found[name])
            assert (label, found[label]) == (
                prediction["label"],
                pytest.approx(prediction["score"], abs=1e-4),
            )
        elif kind == "multi_label":
            assert found == pytest.approx(prediction["scores"], abs=1e-4)
        else:
            assert found["LABEL_0"] == pytest.approx(prediction["value"], abs=1e-4)


def test_the_best_checkpoint_is_kept_and_the_run_ends_early(models, tmp_path, capsys):
    config = write_config(tmp_path, models, "classification")
    settings = ["training.eval_interval=5", "selection.metric=accuracy", "selection.patience=3"]
    assert run(config, *settings, "training.train_steps=200", "checkpoint.save_interval=5") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = {row["step"]: row["eval/accuracy"] for row in rows if "eval/accuracy" in row}
    best = max(seen, key=lambda step: (seen[step], -step))
    last = max(seen)
    assert last < 200 and last == best + 15
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["best_step"] == best and results["accuracy"] == pytest.approx(seen[best])
    kept = list((tmp_path / "run" / "best" / "checkpoints").iterdir())
    assert [path.name for path in kept] == [f"step-{best:08d}"]
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", str(tmp_path / "run" / "best")]) == 0
    assert f"accuracy {seen[best]:.4f}" in capsys.readouterr().out

    # Killed before the results: the decision stands, nothing is trained again.
    (tmp_path / "run" / "results.json").unlink()
    assert run(config, *settings, "training.train_steps=200", "checkpoint.save_interval=5") == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    after = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert after == rows


def test_a_score_that_is_no_number_is_never_the_best(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(Selection, "_keep", lambda _self, _job, step: kept.append(step))
    selection = Selection(SelectionConfig(metric="loss", patience=2))
    job = SimpleNamespace(run_dir=tmp_path)
    for step, loss in enumerate([float("nan"), 3.0, float("nan"), 2.0, float("nan"), 2.5], start=1):
        selection.evaluated(job, step, {"loss": loss})
        assert selection.finished == (step == 6)
    assert kept == [2, 4] and selection.best_step == 4


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_frozen_layers_stay_and_lower_layers_learn_slower(models, tmp_path, zero_stage):
    config = write_config(tmp_path, models, "classification")
    before = read_source(models / "bert").parameters
    settings = ["training.train_steps=3", "optimizer.layer_lr_decay=0.1", f"parallel.zero_stage={zero_stage}"]

    def moved(run_dir):
        after = read_source(tmp_path / run_dir).parameters
        names = (
            "encoder.embeddings.word_embeddings",
            "encoder.layers.0.mlp.linear_fc1",
            "encoder.layers.1.mlp.linear_fc1",
        )
        changes = [(after[f"{n}.weight"] - before[f"{n}.weight"]).abs().max().item() for n in names]
        for name, tensor in after.items():
            if name.startswith(("encoder.embeddings", "encoder.layers.0.")) and run_dir == "frozen":
                assert torch.equal(tensor, before[name]), name
        return changes

    assert run(config, *settings, f"run_dir={tmp_path / 'decay'}") == 0
    embeddings, lower, upper = moved("decay")
    # Adam's steps have the size of the learning rate, a tenth of it for each layer further down.
    assert 0 < embeddings < 0.3 * lower and lower < 0.3 * upper
    assert run(config, *settings, "optimizer.frozen_layers=1", f"run_dir={tmp_path / 'frozen'}") == 0
    assert moved("frozen")[2] > 0


def test_wrong_settings_are_told_before_anything_starts(models, tmp_path):
    config = write_config(tmp_path, models, "classification")
    with pytest.raises(ConfigError, match="selection.metric: 'f1' is no score of task.kind: classification"):
        run(config, "selection.metric=f1", "training.eval_interval=5")
    with pytest.raises(ConfigError, match="selection: needs evaluations"):
        run(config, "selection.metric=accuracy")
    with pytest.raises(ConfigError, match="optimizer.frozen_layers: 5 of a model with 2 layers"):
        run(config, "optimizer.frozen_layers=5")
    with pytest.raises(ConfigError, match="is a gpt; task.kind: classification needs a bert"):
        run(config, f"pretrained={models / 'gpt'}")
    with pytest.raises(ConfigError, match="must be one of classification, multi_label"):
        run(config, "task.kind=poetry")
    with pytest.raises(ConfigError, match="task.stride: unknown key"):
        run(config, "task.stride=4")
    assert not (tmp_path / "run").exists()


def test_wrong_input_of_predict(models, tmp_path):
    with pytest.raises(ConfigError, match="is a pretraining model"):
        predict.predict(models / "bert", tmp_path / "x.jsonl", tmp_path / "out.jsonl", 8)
    (tmp_path / "out.jsonl").write_text("")
    with pytest.raises(DataError, match="exists"):
        predict.predict(models / "bert", tmp_path / "x.jsonl", tmp_path / "out.jsonl", 8)
