"""Which module runs a config, and what is missing before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import commands
from launch.jobs import load_job
from pretrain.config import ConfigError

FINETUNE = Path("configs/finetune/classification.yaml")


def test_finetuning_is_told_by_its_pretrained_checkpoint(tmp_path):
    job = load_job(FINETUNE, [f"pretrained={tmp_path}"], 2)
    assert job.module == "finetune.train"
    assert [problem.split(":")[0] for problem in job.data_problems] == ["data.train", "data.validation"]
    assert load_job(Path("configs/gpt/tiny.yaml"), [], 2).module == "pretrain.train"


def test_the_plan_has_the_module_and_missing_files_stop_it(capsys):
    words = ["local", "--nproc", "2", "--config", str(FINETUNE)]
    assert commands.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("-m finetune.train") == 2
    with pytest.raises(ConfigError, match="pretrained: runs/nowhere does not exist"):
        commands.main([*words, "--set", "pretrained=runs/nowhere"])
