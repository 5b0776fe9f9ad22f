"""Runs with several seeds."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time

import pytest

from finetune.sweep import _Children, summary
from pretrain.config import ConfigError, exit_codes
from tests.unit.finetune.test_finetune_run import own_process  # noqa: F401 (autouse)
from tests.unit.finetune.test_task_runs import models, write_config  # noqa: F401


def test_the_summary_of_a_sweep():
    results = [{"accuracy": a, "n": 3, "labels": []} for a in (0.5, 0.7, 0.6)]
    (only,) = summary(results).items()
    assert only == (
        "accuracy",
        {"mean": pytest.approx(0.6), "stdev": pytest.approx(0.1), "min": 0.5, "max": 0.7},
    )


@pytest.mark.parametrize("losses", [(None, 0.5), (0.5, None), (0.5, float("inf"))])
def test_the_spread_of_what_is_no_number_in_a_run_is_none(losses):
    (spread,) = summary([{"loss": loss, "best_step": None} for loss in losses]).values()
    assert spread.keys() == {"mean", "stdev", "min", "max"} and all(map(math.isnan, spread.values()))


def test_a_signal_reaches_the_run_and_no_other_is_begun(tmp_path):
    ready = tmp_path / "ready"
    script = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )

    def stop():
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    children = _Children()
    threading.Thread(target=stop, daemon=True).start()
    assert children.run([sys.executable, "-c", script]) == exit_codes.STOPPED
    assert (
        children.run([sys.executable, "-c", f"open({str(tmp_path / 'second')!r}, 'w')"]) == exit_codes.STOPPED
    )
    assert not (tmp_path / "second").exists()
    assert _Children().run([sys.executable, "-c", "import os; os.abort()"]) == 128 + signal.SIGABRT


@pytest.mark.slow
def test_a_sweep_runs_each_seed(models, tmp_path, capfd):  # noqa: F811
    config = write_config(tmp_path, models, "classification")
    with pytest.raises(ConfigError, match="two or more, all different"):
        run_sweep(config, "1", "1")
    assert run_sweep(config, "1", "2") == 0
    found = json.loads((tmp_path / "run" / "sweep.json").read_text())
    each = [json.loads((tmp_path / "run" / f"seed-{n}" / "results.json").read_text()) for n in (1, 2)]
    assert [r["seed"] for r in each] == [1, 2]
    assert found["scores"]["loss"]["mean"] == pytest.approx(sum(r["loss"] for r in each) / 2)
    assert "2 seeds; see" in capfd.readouterr().out


def run_sweep(config, *seeds):
    from finetune.train import main

    return main(["--config", str(config), "--set", "training.train_steps=2", "--seeds", *seeds])
