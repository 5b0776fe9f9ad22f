"""The same run under every launcher that the README names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import LAUNCHERS, rows, run, tiny_run


@pytest.mark.distributed
@pytest.mark.slow
def test_every_launcher_gives_the_same_losses(corpus: Path, tmp_path: Path) -> None:
    losses = {}
    for name, launcher in LAUNCHERS.items():
        run_dir = tmp_path / name.replace(" ", "-")
        run(
            [
                *launcher,
                *tiny_run("gpt", corpus, run_dir, steps=3),
                "--set",
                "model.hidden_dropout=0.0",
                "--set",
                "model.attention_dropout=0.0",
            ]
        )
        losses[name] = [row["loss"] for row in rows(run_dir) if "loss" in row]
        assert (run_dir / "logs" / "rank-0.log").read_text().count("complete: 3 steps") == 1
    for name, values in losses.items():
        assert values == pytest.approx(losses["by hand"], rel=1e-5), name
