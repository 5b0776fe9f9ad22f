"""What a model has memorised: what it was trained on until it knew it, and what it never saw."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_tools.errors import DataError
from finetune import audit
from finetune.audit import _scored, other_secrets
from finetune.export_hf import export
from finetune.generate import open_writer
from finetune.writing import WritingOptions
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)
from tests.unit.finetune.test_task_runs import models, run, write_config  # noqa: F401

FORM = "the value of the list is {}"


@pytest.fixture(scope="module")
def learned(models, tmp_path_factory):  # noqa: F811
    """A GPT that was trained on few texts until it knows them, one canary among them."""
    root = tmp_path_factory.mktemp("learned")
    config = write_config(root, models, "sft")
    texts = [
        "return the class of an object or the number of its values",
        "value function name of a string module in the list of names",
        FORM.format("4711"),
    ]
    rows = "".join(
        json.dumps({"prompt": text.split()[0], "response": text[len(text.split()[0]) :]}) + "\n"
        for text in texts
    )
    (root / "train.jsonl").write_text(rows)
    (root / "validation.jsonl").write_text(rows)
    assert (
        run(config, "batch.micro_batch_size=3", "batch.global_batch_size=3", "training.train_steps=80") == 0
    )
    return root / "run", texts


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_that_were_learned_are_extracted_and_others_are_not(learned, tmp_path):
    run_dir, texts = learned
    unseen = [
        "a statement is a number and a module returns it",
        "string of the class value module list name number",
    ]
    path = write(tmp_path / "texts.jsonl", [{"text": text} for text in [*texts[:2], *unseen, "the"]])
    words = ["--checkpoint", str(run_dir), "--texts", str(path), "--prefix", "3", "--suffix", "4"]
    assert audit.main([*words, "--out", str(tmp_path / "out.json"), "--batch-size", "2"]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["extraction"]
    assert found["texts"] == 4 and found["too_short"] == 1 and found["rate"] == 0.5
    assert found["extracted"] == [f"{path}:1", f"{path}:2"]
    # The same decision by writing on, token by token.
    with open_writer(run_dir) as writer:
        for text, extracted in [*((t, True) for t in texts[:2]), *((t, False) for t in unseen)]:
            ids = writer.tokens_of(text)
            written = writer.continue_tokens([ids[:3]], WritingOptions(max_new_tokens=4))[0]
            assert (writer.tokens_of(text)[3:7] == ids[3:7]) and (
                written == writer._codec.decode(ids[3:7])
            ) == extracted
    with pytest.raises(DataError, match="no text has 64 tokens; lower --prefix or --suffix"):
        audit.main(["--checkpoint", str(run_dir), "--texts", str(path), "--out", str(tmp_path / "no.json")])
    assert not (tmp_path / "no.json").exists()


def test_a_planted_secret_is_exposed_and_another_is_not(learned, tmp_path):
    run_dir, _ = learned
    rows = [{"format": FORM, "secret": "4711"}, {"format": FORM, "secret": "0835"}]
    words = ["--checkpoint", str(run_dir), "--canaries", str(write(tmp_path / "c.jsonl", rows))]
    assert audit.main([*words, "--out", str(tmp_path / "out.json"), "--candidates", "99"]) == 0
    planted, other = json.loads((tmp_path / "out.json").read_text())["exposure"]["canaries"]
    assert planted["rank"] == 1 and planted["of"] == 100
    assert planted["exposure"] == pytest.approx(math.log2(100), abs=1e-3)
    assert other["rank"] > 1
    # The loss that ranks them is transformers'.
    export(run_dir, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with open_writer(run_dir) as writer, torch.no_grad():
        texts = [writer.tokens_of(FORM.format(secret)) for secret in ("4711", "0835", "17")]
        for ids, (foreseen, loss) in zip(texts, _scored(writer, texts, 2), strict=True):
            out = model(torch.tensor([ids]), labels=torch.tensor([ids]))
            assert loss == pytest.approx(float(out.loss) * (len(ids) - 1), rel=1e-4)
            assert foreseen == (out.logits[0, :-1].argmax(-1) == torch.tensor(ids[1:])).tolist()
    bad = write(tmp_path / "bad.jsonl", [rows[0], {"format": "no place", "secret": "1"}])
    with pytest.raises(DataError, match="bad.jsonl:2: 'format' must have {} once"):
        audit.main([*words[:2], "--canaries", str(bad), "--out", str(tmp_path / "no.json")])


def test_candidates_are_other_secrets_of_the_same_length():
    assert other_secrets("7", 50) == [d for d in "0123456789" if d != "7"]
    many = other_secrets("4711", 100)
    assert len(set(many)) == 100 and "4711" not in many and {len(s) for s in many} == {4}
