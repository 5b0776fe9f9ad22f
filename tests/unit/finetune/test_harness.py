"""`headwater evaluate --lm-eval`, against log-likelihoods of transformers' model with the same weights.

What needs lm-eval runs where it is installed, as the extra `dev` does; arguments, models and names do not.
"""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.config import ImportedConfig
from finetune.evaluate import main
from finetune.export_hf import export
from finetune.harness import find_names, require_text_gpt
from finetune.source import read_source, write_weights
from launch import cli
from pretrain.config import ConfigError
from tests.unit.finetune.test_conversion import architecture, write_run
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)

QUESTIONS = [
    {
        "question": "The value of a list is",
        "choices": ["a list", "a function of the class", "x"],
        "answer": 1,
    },
    {
        "question": "A method returns",
        "choices": ["None", "the value of an expression", "an object"],
        "answer": 0,
    },
    {"question": "Names", "choices": ["refer to objects", "are objects", "do not"], "answer": 2},
]
LONG = "The return statement leaves the current function call with the value of an expression, or None. " * 4
TEXTS = ["A list is a sequence of values.", LONG.strip()]
TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}],
    },
    "tiny_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def runs(tokenizer_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("harness")
    for kind in ("gpt", "llama", "bert"):
        write_run(root / kind, architecture(kind, 900), tokenizer_model)
    return root


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "tasks"
    directory.mkdir()
    for (name, task), rows in zip(
        TASKS.items(), (QUESTIONS, [{"text": text} for text in TEXTS]), strict=True
    ):
        table = tmp_path / f"{name}.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(table)}}}
        (directory / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name, "test_split": "test", **data, **task})
        )
    return directory


def words(checkpoint, *more):
    return ["--checkpoint", str(checkpoint), *map(str, more)]


@torch.no_grad()
def loglikelihoods(model, ids, count):
    """Sum of the log-probabilities of the last `count` of `ids`, each given all before it."""
    logits = model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
    return float(sum(logits[place - 1, ids[place]] for place in range(len(ids) - count, len(ids))))


def rolling(model, tokenizer, text, context):
    """Each token once, from as many tokens before it as fit; the end of a text stands before the first."""
    tokens = tokenizer(text)["input_ids"]
    ids, total = [tokenizer.eos_token_id, *tokens], 0.0
    for start in range(0, len(tokens), context):
        end = min(start + context, len(tokens))
        total += loglikelihoods(model, ids[max(0, end - context) : end + 1], end - start)
    return total, len(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_scores_are_those_of_plain_loglikelihoods(kind, runs, tasks, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    out = tmp_path / "scores"
    arguments = ("--lm-eval", "tiny_*", "--lm-eval-path", tasks, "--batch-size", "2", "--out", out)
    assert main(words(runs / kind, *arguments)) == 0
    printed = capsys.readouterr().out
    assert "|tiny_choice|" in printed and f"written: {out / 'metrics.json'}" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["n-samples"]["tiny_choice"] == {"original": 3, "effective": 3}

    export(runs / kind, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    right, distance = [], []
    for row in QUESTIONS:
        before, scores = tokenizer(row["question"])["input_ids"], []
        for choice in row["choices"]:
            ids = tokenizer(row["question"] + " " + choice)["input_ids"]
            assert ids[: len(before)] == before
            scores.append(loglikelihoods(model, ids, len(ids) - len(before)))
        right.append(max(range(len(scores)), key=scores.__getitem__) == row["answer"])
        probabilities = torch.tensor(scores).softmax(0)
        probabilities[row["answer"]] -= 1
        distance.append(float(probabilities.square().sum()))
    found = metrics["results"]["tiny_choice"]
    assert found["acc,none"] == pytest.approx(sum(right) / 3)
    assert found["brier_score,none"] == pytest.approx(sum(distance) / 3, abs=1e-4)

    sums = [rolling(model, tokenizer, text, 48) for text in TEXTS]
    assert sums[0][1] < 48 < sums[1][1]  # one fits into the context, one is read in windows
    total = sum(one for one, _ in sums)
    found = metrics["results"]["tiny_text"]
    size = sum(len(text.encode()) for text in TEXTS)
    assert found["bits_per_byte,none"] == pytest.approx(-total / size / math.log(2), rel=1e-5)
    count = sum(len(text.split()) for text in TEXTS)
    assert math.log(found["word_perplexity,none"]) == pytest.approx(-total / count, rel=1e-5)


@pytest.mark.slow
def test_a_limit_and_what_cannot_be_loaded(runs, tasks, tmp_path, capsys, monkeypatch):
    pytest.importorskip("lm_eval")
    limited = words(runs / "gpt", "--lm-eval", "tiny_choice", "--lm-eval-path", tasks, "--limit", "2")
    assert main([*limited, "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["limit"] == 2 and metrics["n-samples"]["tiny_choice"]["effective"] == 2

    (tmp_path / "tiny_text.jsonl").unlink()
    assert (
        cli.main(["evaluate", *words(runs / "gpt", "--lm-eval", "tiny_text", "--lm-eval-path", tasks)]) == 2
    )
    assert "--lm-eval tiny_text: lm-eval cannot load the task or its data set" in capsys.readouterr().err
    assert (
        cli.main(["evaluate", *words(runs / "gpt", "--lm-eval", "tiny_chioce", "--lm-eval-path", tasks)]) == 2
    )
    assert "knows no such task; did you mean tiny_choice" in capsys.readouterr().err


@pytest.mark.slow
def test_tasks_that_cannot_go_together_or_with_the_model(runs, tasks, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    (tasks / "tiny_all.yaml").write_text(yaml.safe_dump({"group": "tiny_all", "task": ["tiny_choice"]}))
    asked = words(runs / "gpt", "--lm-eval", "tiny_[ac]*", "--lm-eval-path", tasks)
    assert cli.main(["evaluate", *asked]) == 2
    assert "give a group or its tasks, not both" in capsys.readouterr().err

    answers = yaml.safe_load((tasks / "tiny_choice.yaml").read_text())
    answers |= {
        "task": "tiny_answer",
        "output_type": "generate_until",
        "metric_list": [{"metric": "exact_match"}],
    }
    (tasks / "tiny_answer.yaml").write_text(yaml.safe_dump(answers))
    asked = words(runs / "gpt", "--lm-eval", "tiny_answer", "--lm-eval-path", tasks)
    assert cli.main(["evaluate", *asked]) == 2
    assert "lm-eval cannot score" in capsys.readouterr().err  # 256 new tokens, a context of 48

    (tmp_path / "file").write_text("")
    asked = words(runs / "gpt", "--lm-eval", "tiny_choice", "--out", tmp_path / "file" / "scores")
    assert cli.main(["evaluate", *asked]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(runs, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(["evaluate", *words(runs / "gpt", "--lm-eval", "hellaswag")]) == 2
    assert "needs the package 'lm_eval'; pip install 'headwater[harness]'" in capsys.readouterr().err


def test_models_that_write_no_text_are_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="is a bert; lm-eval scores what a gpt writes"):
        require_text_gpt(runs / "bert")
    assert require_text_gpt(runs / "gpt").parent.parent == runs / "gpt"
    numbers = tmp_path / "vocabulary.json"
    numbers.write_text('{"kind": "integers", "vocab_size": 900, "special": {"eod": 3}}')
    of = architecture("gpt", 900)
    parameters = read_source(runs / "gpt").parameters
    config = ImportedConfig(imported_from="test", model=of.model)
    write_weights(tmp_path / "run", of, parameters, config, {numbers.name: numbers})
    with pytest.raises(ConfigError, match="reads integers, lm-eval's tasks are texts"):
        require_text_gpt(tmp_path / "run")


def test_names_are_patterns_and_near_ones_are_told():
    known = ["arc_easy", "arc_hard", "mmlu"]
    assert find_names(["mmlu", "arc_*", "arc_easy"], known) == ["mmlu", "arc_easy", "arc_hard"]
    with pytest.raises(ConfigError, match="--lm-eval arc_esy: .* did you mean arc_easy"):
        find_names(["arc_esy"], known)
    with pytest.raises(ConfigError, match="`lm-eval ls tasks` lists them"):
        find_names(["zzz"], known)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--limit", "3"], "--lm-eval-path and --limit belong to --lm-eval"),
        (["--lm-eval", "mmlu", "--data", "rows.csv"], "leave --data and --column out"),
        (["--lm-eval", "mmlu", "--limit", "0"], "is not"),
        (["--lm-eval"], "expected at least one argument"),
    ],
)
def test_options_that_do_not_go_together(wrong, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words("runs/none", *wrong))
    assert message in capsys.readouterr().err
