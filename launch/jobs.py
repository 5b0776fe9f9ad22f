"""What kind of job a config describes: pretraining, or finetuning, which names a `pretrained` checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune.config import FinetuneConfig, load_finetune_config, with_model
from launch.check_data import data_findings
from launch.findings import Finding
from pretrain.config import JobConfig, RunConfig, load_config
from pretrain.config.load import read_yaml
from pretrain.config.model import ModelConfig, parse_model
from pretrain.config.validate import job_problems, problems_of


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A validated config and what runs it.

    Attributes:
        config: Of either kind.
        module: What every rank executes.
        model: Its architecture; None for finetuning from a checkpoint that cannot be read here.
    """

    config: JobConfig
    module: str
    model: ModelConfig | None

    def data_findings(self) -> list[Finding]:
        """What its files look like from here; a login node may not see them."""
        if isinstance(self.config, RunConfig):
            return data_findings(self.config)
        assert isinstance(self.config, FinetuneConfig)
        return _file_findings(self.config)

    def data_problems(self) -> list[str]:
        """What is wrong with its files."""
        return [finding.text for finding in self.data_findings() if finding.level == "error"]


def load_job(path: Path, overrides: Sequence[str] = (), world_size: int | None = None) -> JobPlan:
    """Read and check the config of a job.

    Args:
        path: The YAML file.
        overrides: `section.key=value` texts.
        world_size: Number of ranks, where known.

    Raises:
        ConfigError: With every problem found.
    """
    if "pretrained" in read_yaml(path, overrides):
        return _finetuning(load_finetune_config(path, overrides, world_size))
    config = load_config(path, overrides, world_size)
    return JobPlan(config, "pretrain.train", config.model)


def size_problems(config: JobConfig, world_size: int) -> list[str]:
    """What keeps a config of either kind from running on so many ranks."""
    if isinstance(config, RunConfig):
        return problems_of(config, world_size)
    return job_problems(config, world_size)


def _finetuning(config: FinetuneConfig) -> JobPlan:
    """A finetuning job; with its checkpoint's architecture, which must fit, where that can be read.

    Raises:
        ConfigError: If it does not fit.
    """
    model = config.model or _saved_model(Path(config.pretrained) / "config.yaml")
    return JobPlan(with_model(config, model) if model else config, "finetune.train", model)


def _file_findings(config: FinetuneConfig) -> list[Finding]:
    """Files are read by the ranks; here only their existence is looked at."""
    paths = {
        "pretrained": config.pretrained,
        "data.train": config.data.train,
        "data.validation": config.data.validation,
    }
    missing = [f"{key}: {path} does not exist" for key, path in paths.items() if not Path(path).exists()]
    if missing:
        return [Finding("error", "data", text) for text in missing]
    return [Finding("ok", "data", f"{', '.join(paths.values())} are there; the ranks read them")]


def _saved_model(path: Path) -> ModelConfig | None:
    """The architecture in the config of a run or a checkpoint, if there is one."""
    if not path.is_file():
        return None
    try:
        return parse_model(read_yaml(path).get("model"))
    except ValidationError:
        return None  # the ranks say what is wrong with it
