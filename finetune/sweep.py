"""`headwater finetune --seeds`: the same run with several seeds, one after the other, and their spread."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pretrain.config import ConfigError
from pretrain.config.environment import world_size_from_environment

SWEEP = "sweep.json"


def sweep(config: Path, overrides: Sequence[str], run_dir: Path, seeds: Sequence[int]) -> int:
    """Run what is not complete yet, each seed in a directory and a process of its own.

    Args:
        config: The YAML file.
        overrides: `section.key=value` texts for all runs.
        run_dir: Gets a directory `seed-N` for each run, and sweep.json.
        seeds: At least two, all different.

    Returns:
        0, or the exit code of the first run that did not end well.

    Raises:
        ConfigError: A launcher started several ranks, or seeds that are no sweep.
    """
    if world_size_from_environment() > 1:
        raise ConfigError("--seeds runs in one process; start it without launcher")
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError("--seeds: give two or more, all different")
    for seed in seeds:
        settings = [*overrides, f"seed={seed}", f"run_dir={run_dir / f'seed-{seed}'}"]
        words = [word for text in settings for word in ("--set", text)]
        command = [sys.executable, "-m", "launch.cli", "finetune", "--config", str(config), *words]
        code = subprocess.run(command).returncode
        if code:
            return code
    results = {seed: _results(run_dir / f"seed-{seed}") for seed in seeds}
    scores = summary(list(results.values()))
    text = json.dumps({"seeds": list(seeds), "scores": scores}, indent=2)
    (run_dir / SWEEP).write_text(text + "\n", encoding="utf-8")
    for name, values in scores.items():
        extremes = f"{values['min']:.4f} to {values['max']:.4f}"
        print(f"{name} {values['mean']:.4f} ± {values['stdev']:.4f} ({extremes})")
    print(f"{len(seeds)} seeds; see {run_dir / SWEEP}")
    return 0


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, sample standard deviation and extremes of each score that all results have."""
    names = [name for name, value in results[0].items() if isinstance(value, float)]
    columns = {name: [float(result[name]) for result in results] for name in names}
    return {
        name: {"mean": mean(values), "stdev": stdev(values), "min": min(values), "max": max(values)}
        for name, values in columns.items()
    }


def _results(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    return found
