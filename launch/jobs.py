"""What kind of job a config describes: pretraining, or finetuning, which names a `pretrained` checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import FinetuneConfig, load_finetune_config
from launch.check_data import data_findings
from pretrain.config import JobConfig, RunConfig, load_config
from pretrain.config.load import read_yaml


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A validated config and what runs it.

    Attributes:
        config: Of either kind.
        module: What every rank executes.
        data_problems: What is wrong with its files; a login node may not see them.
    """

    config: JobConfig
    module: str
    data_problems: list[str]


def load_job(path: Path, overrides: Sequence[str], world_size: int) -> JobPlan:
    """Read and check the config of a job.

    Raises:
        ConfigError: With every problem found.
    """
    if "pretrained" in read_yaml(path, overrides):
        finetuning = load_finetune_config(path, overrides, world_size)
        return JobPlan(finetuning, "finetune.train", _missing_files(finetuning))
    config: RunConfig = load_config(path, overrides, world_size)
    wrong = [finding.text for finding in data_findings(config) if finding.level == "error"]
    return JobPlan(config, "pretrain.train", wrong)


def _missing_files(config: FinetuneConfig) -> list[str]:
    """Files are read by the ranks; here only their existence is looked at."""
    paths = {
        "pretrained": config.pretrained,
        "data.train": config.data.train,
        "data.validation": config.data.validation,
    }
    return [f"{key}: {path} does not exist" for key, path in paths.items() if not Path(path).exists()]
