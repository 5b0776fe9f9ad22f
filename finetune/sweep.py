"""`headwater finetune --seeds`: the same run with several seeds, one after the other, and their spread."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from data_tools.publish import write_json
from finetune.config import load_finetune_config
from pretrain.config import ConfigError, exit_codes
from pretrain.config.environment import world_size_from_environment
from pretrain.stop import SIGNALS

SWEEP = "sweep.json"


def sweep(path: Path, overrides: Sequence[str], seeds: Sequence[int]) -> int:
    """Run what is not complete yet, each seed in a process of its own and in `run_dir/seed-N`.

    Args:
        path: The YAML file; its run_dir gets sweep.json, too.
        overrides: `section.key=value` texts for all runs.
        seeds: At least two, all different.

    Returns:
        0, or the exit code of the first run that did not end well; 75 where a signal ended the sweep.

    Raises:
        ConfigError: A launcher started several ranks, a wrong config, or seeds that are no sweep.
    """
    if world_size_from_environment() > 1:
        raise ConfigError("--seeds runs in one process; start it without launcher")
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError("--seeds: give two or more, all different")
    run_dir = Path(load_finetune_config(path, overrides, 1).run_dir)
    children = _Children()
    for seed in seeds:
        settings = [*overrides, f"seed={seed}", f"run_dir={run_dir / f'seed-{seed}'}"]
        words = [word for text in settings for word in ("--set", text)]
        code = children.run([sys.executable, "-m", "launch.cli", "finetune", "--config", str(path), *words])
        if code:
            return code
    results = {seed: _results(run_dir / f"seed-{seed}") for seed in seeds}
    scores = summary(list(results.values()))
    write_json(run_dir / SWEEP, {"seeds": list(seeds), "scores": scores})
    for name, values in scores.items():
        extremes = f"{values['min']:.4f} to {values['max']:.4f}"
        print(f"{name} {values['mean']:.4f} ± {values['stdev']:.4f} ({extremes})")
    print(f"{len(seeds)} seeds; see {run_dir / SWEEP}")
    return 0


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, sample standard deviation and extremes of each score that all results have.

    All four are NaN for a score that is no number (null) in one of them.
    """
    names = {name: None for result in results for name, value in result.items() if isinstance(value, float)}
    columns = {name: [result.get(name) for result in results] for name in names}
    return {name: _spread(values) for name, values in columns.items()}


def _spread(values: Sequence[float | None]) -> dict[str, float]:
    numbers = [math.nan if value is None else value for value in values]
    if not all(map(math.isfinite, numbers)):
        return dict.fromkeys(("mean", "stdev", "min", "max"), math.nan)
    return {"mean": mean(numbers), "stdev": stdev(numbers), "min": min(numbers), "max": max(numbers)}


class _Children:
    """Processes one after the other, each of which gets the signals of this one."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        for number in SIGNALS:
            signal.signal(number, self._pass_on)

    def run(self, command: Sequence[str]) -> int:
        """Run a command; its exit code as a shell gives it, 75 where it came to its end before a signal."""
        if not self._stopped:
            self._child = subprocess.Popen(command)
            code = self._child.wait()
            if code:
                return code if code > 0 else 128 - code
        return exit_codes.STOPPED if self._stopped else exit_codes.OK

    def _pass_on(self, number: int, _frame: object) -> None:
        self._stopped = True
        if self._child is not None:
            self._child.send_signal(number)


def _results(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    return found
