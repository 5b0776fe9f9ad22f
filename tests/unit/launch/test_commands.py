"""`headwater launch local`: what is refused before any rank starts, and the dry run."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import cli, local
from pretrain.config import dump_yaml, load_config

REPO = Path(__file__).parents[3]
TINY = str(REPO / "configs" / "gpt" / "tiny.yaml")


@pytest.fixture(autouse=True)
def no_rank_starts(monkeypatch):
    def refuse(plan):
        raise AssertionError("a rank would have started")

    monkeypatch.setattr(local, "run", refuse)


def launch(*words: str) -> int:
    return cli.main(["launch", "local", *words])


def test_dry_run_prints_each_rank_and_starts_none(capsys):
    assert (
        launch("--nproc", "2", "--config", TINY, "--set", "seed=7", "--master-port", "29511", "--dry-run")
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert f" RANK={rank} WORLD_SIZE=2 " in line and "MASTER_PORT=29511" in line
        assert line.endswith(f"-m pretrain.train --config {TINY} --set seed=7")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.train_stepz=3", "train_stepz"),
        ("batch.global_batch_size=7", "batch.global_batch_size"),
        ("parallel.tensor_model_parallel_size=3", "parallel.tensor_model_parallel_size"),
        ("no_equals_sign", "no_equals_sign"),
    ],
)
def test_a_wrong_config_is_refused_before_any_rank_starts(capsys, override, named):
    assert launch("--nproc", "2", "--config", TINY, "--set", override) == 2
    assert named in capsys.readouterr().err


def test_a_run_directory_of_another_config_is_refused(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text(dump_yaml(load_config(Path(TINY), ["seed=1"])))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert launch("--nproc", "1", "--config", TINY, "--set", f"run_dir={tmp_path}", "seed=2") == 2
    assert "belongs to another config" in capsys.readouterr().err


def test_a_missing_config_is_named(capsys, tmp_path):
    assert launch("--nproc", "2", "--config", str(tmp_path / "absent.yaml")) == 2
    assert "absent.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("nproc", ["0", "-1", "two"])
def test_nproc_must_be_positive(capsys, nproc):
    with pytest.raises(SystemExit) as error:
        launch("--nproc", nproc, "--config", TINY)
    assert error.value.code == 2
    assert "--nproc" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["launch", "local", "--nproc", "1", "--config", TINY, "--max-restarts", "-1"],
        ["launch", "logs", "runs/x", "-n", "0"],
        ["launch", "logs", "runs/x", "--rank", "-1"],
        ["simulate", "--config", TINY, "--nproc", "0"],
        ["parity", "--config", TINY, "--nproc", "0"],
        ["data", "trace", "--run", "runs/x", "--step", "0"],
    ],
)
def test_counts_that_cannot_be_are_refused_with_their_option(capsys, words):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert f"argument {words[-2]}" in capsys.readouterr().err
