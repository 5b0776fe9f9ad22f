"""Mistakes that people make: a clear message and exit code 2, before any rank starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.runs import HEADWATER, finish, start, tiny_run

LAUNCH = [*HEADWATER, "launch", "local", "--nproc", "2"]


def refuse(command: list[str]) -> str:
    code, output = finish(start(command))
    assert code == 2, output
    assert "headwater: error:" in output
    assert "Traceback" not in output
    return output


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("batch.micro_bach_size=2", "batch.micro_bach_size: unknown key; did you mean 'micro_batch_size'?"),
        ("batch.global_batch_size=7", "batch.global_batch_size: 7 is not a multiple"),
        (
            "model.num_attention_heads=1",
            "parallel.tensor_model_parallel_size: 2 does not divide model.num_attention_heads: 1",
        ),
        ("precision=fp64", "precision:"),
        ("deepspeed.gradient_clipping=3.0", "deepspeed.gradient_clipping: 3.0 contradicts 1.0"),
    ],
)
def test_wrong_config(corpus: Path, tmp_path: Path, override: str, expected: str) -> None:
    layout = ["--set", "parallel.tensor_model_parallel_size=2"]
    output = refuse([*LAUNCH, *tiny_run("gpt", corpus, tmp_path / "run"), *layout, "--set", override])
    assert expected in output
    assert not (tmp_path / "run").exists()  # no rank started


def test_key_that_only_deepspeed_refuses(corpus: Path, tmp_path: Path) -> None:
    override = ["--set", "deepspeed.zero_optimization.reduce_bucket_sizes=5"]
    output = refuse([*LAUNCH[:-1], "1", *tiny_run("gpt", corpus, tmp_path / "run"), *override])
    assert "deepspeed.zero_optimization.reduce_bucket_sizes: DeepSpeed says: Extra inputs" in output


def test_missing_corpus(tmp_path: Path) -> None:
    output = refuse([*LAUNCH, *tiny_run("gpt", tmp_path / "nowhere", tmp_path / "run")])
    assert str(tmp_path / "nowhere") in output


def test_missing_shard(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    (copy / "train" / "train-00000.tar").unlink()
    output = refuse([*LAUNCH, *tiny_run("gpt", copy, tmp_path / "run")])
    assert "train-00000.tar" in output


def test_tokenizer_of_another_corpus(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    documents = corpus.parent / "docs" / "corpus.jsonl"
    other = [
        "--vocab-size",
        "1000",
        "--max-train-mb",
        "0.5",
        "--model-type",
        "bpe",
        "--out",
        str(tmp_path / "other.model"),
    ]
    code, output = finish(start([*HEADWATER, "data", "tokenizer", "--input", str(documents), *other]))
    assert code == 0, output
    output = refuse(
        [
            *LAUNCH,
            *tiny_run("gpt", copy, tmp_path / "run"),
            "--set",
            f"data.tokenizer={tmp_path / 'other.model'}",
        ]
    )
    assert "tokenizer" in output


def test_vocabulary_of_another_size(corpus: Path, tmp_path: Path) -> None:
    output = refuse([*LAUNCH, *tiny_run("gpt", corpus, tmp_path / "run"), "--set", "model.vocab_size=999"])
    assert "model.vocab_size is 999" in output


def test_empty_corpus(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    output = refuse(
        [
            *HEADWATER,
            "data",
            "tokenizer",
            "--input",
            str(empty),
            "--vocab-size",
            "1000",
            "--out",
            str(tmp_path / "t.model"),
        ]
    )
    assert "empty.jsonl" in output or "no document" in output


def test_run_directory_of_another_config(corpus: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    from pretrain.config import dump_yaml, load_config

    arguments = tiny_run("gpt", corpus, run_dir)
    config = load_config(Path(arguments[1]), [text for text in arguments[2:] if text != "--set"])
    (run_dir / "config.yaml").write_text(dump_yaml(config))
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
    output = refuse([*LAUNCH, *arguments, "--set", "model.num_layers=3"])
    assert "belongs to another config" in output
    assert "model.num_layers (there 2, now 3)" in output
