"""Which module runs a config, and what is missing before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launch import cli, commands
from launch.jobs import load_job
from pretrain.config import ConfigError, load_config

FINETUNE = Path("configs/finetune/classification.yaml")


def test_finetuning_is_told_by_its_pretrained_checkpoint(tmp_path):
    job = load_job(FINETUNE, [f"pretrained={tmp_path}"], 2)
    assert job.module == "finetune.train"
    assert [problem.split(":")[0] for problem in job.data_problems()] == ["data.train", "data.validation"]
    assert load_job(Path("configs/gpt/tiny.yaml"), [], 2).module == "pretrain.train"


def test_the_plan_has_the_module_and_missing_files_stop_it(capsys):
    words = ["local", "--nproc", "2", "--config", str(FINETUNE)]
    assert commands.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("-m finetune.train") == 2
    with pytest.raises(ConfigError, match="pretrained: runs/nowhere does not exist"):
        commands.main([*words, "--set", "pretrained=runs/nowhere"])


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A finetuning job whose checkpoint and data are there."""
    model = load_config(Path("configs/bert/tiny.yaml")).model.model_dump(mode="json")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    rows = [f"data.{split}={tmp_path}/rows.jsonl" for split in ("train", "validation")]
    texts = [f"pretrained={tmp_path}/bert", f"run_dir={tmp_path}/run", *rows]
    return ["--config", str(FINETUNE), *(word for text in texts for word in ("--set", text))]


def test_finetuning_can_be_checked(words, tmp_path, capsys):
    assert cli.main(["check", *words, "--nproc", "2"]) == 0
    report = capsys.readouterr().out
    assert "2 = TP 1 x DP 2" in report and "the ranks read them" in report and "a checkpoint is " in report
    cluster = ["--cluster", "configs/cluster/local.yaml"]
    assert cli.main(["check", *words, *cluster, "--set", "batch.seq_length=100000"]) == 2
    assert "batch.seq_length: 100000 is longer than the" in capsys.readouterr().out
    assert cli.main(["check", *words, "--set", "data.train=nowhere"]) == 2
    assert "data.train: nowhere does not exist" in capsys.readouterr().out


def test_finetuning_is_rendered_for_clusters_and_hosts(words, tmp_path, capsys):
    description = {"kind": "slurm", "nodes": 2, "ranks_per_node": 1, "time_limit": "1:00:00"}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(description))
    cluster = ["--cluster", str(tmp_path / "cluster.yaml")]
    assert cli.main(["launch", "slurm", *words, *cluster, "--dry-run"]) == 0
    assert f"    -m finetune.train --config {FINETUNE}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["launch", "slurm", *words, "--dry-run"])
    assert cli.main(["launch", "slurm", *words, *cluster, "--cluster-set", "nodes=3", "--dry-run"]) == 2
    assert "with nodes: 3 (3 ranks): batch.global_batch_size" in capsys.readouterr().err
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    hosts = ["--hostfile", str(tmp_path / "hosts")]
    assert cli.main(["launch", "deepspeed", *hosts, *words, "--dry-run"]) == 0
    assert f"--module finetune.train --config {FINETUNE}" in capsys.readouterr().out
