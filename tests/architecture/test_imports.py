"""Who may import whom, and what must not be loaded at start-up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import GROUPS

REPO = Path(__file__).parents[2]
HEAVY = {"deepspeed", "megatron", "numpy", "pydantic", "sentencepiece", "torch", "transformers", "yaml"}
TRAINING = HEAVY - {"pydantic", "yaml"}


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded in a fresh interpreter that ran `code`."""
    script = f"import sys\n{code}\nimport json\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in json.loads(result.stderr.splitlines()[-1])}


def test_the_import_contracts_hold():
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command, "import-linter is not installed; run `make venv`"
    result = subprocess.run([command], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_help_loads_nothing_heavy():
    """What keeps `headwater --help` fast; measuring time would make a flaky test."""
    loaded = modules_after("from launch.cli import main\nmain(['--help'])")
    assert not loaded & HEAVY
    assert not loaded & {"data_tools", "finetune", "pretrain"}


@pytest.mark.parametrize("group", GROUPS)
def test_the_help_of_a_group_loads_no_training_library(group):
    code = f"""
from launch.cli import main
try:
    main([{group!r}, "--help"])
except SystemExit as end:
    assert end.code == 0
"""
    assert not modules_after(code) & TRAINING


LAUNCH_MODULES = sorted(
    ".".join(path.relative_to(REPO).with_suffix("").parts)
    for path in (REPO / "launch").rglob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("module", LAUNCH_MODULES)
def test_launch_needs_no_training_library(module):
    assert not modules_after(f"import {module}") & TRAINING


def test_the_config_needs_no_training_library():
    assert not modules_after("import pretrain.config.load") & TRAINING


def test_plans_and_checks_work_without_torch_installed(tmp_path: Path):
    """A login node: every import of a training library fails."""
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    code = f"""
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(TRAINING)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from launch.cli import main
config = ["--config", "configs/gpt/tiny.yaml"]
assert main(["launch", "local", "--nproc", "2", *config, "--dry-run"]) == 0
cluster = ["--cluster", "configs/cluster/slurm-h100.yaml"]
small = ["--cluster-set", "nodes=1", "--cluster-set", "ranks_per_node=2"]
assert main(["launch", "slurm", *config, *cluster, *small, "--dry-run"]) == 0
assert main(["check", *config, *cluster, "--set", "data.corpora.0.path=absent"]) == 2
assert main(["check", *config, "--set", "data.corpora.0.path=absent"]) == 2
assert main(["launch", "deepspeed", "--hostfile", {str(tmp_path / "hosts")!r}, *config, "--dry-run"]) == 0
finetuning = ["--config", "configs/finetune/classification.yaml"]
assert main(["launch", "slurm", *finetuning, *cluster, *small, "--dry-run"]) == 0
assert main(["check", *finetuning, "--set", "data.train=absent"]) == 2
"""
    assert "torch" not in modules_after(code)
