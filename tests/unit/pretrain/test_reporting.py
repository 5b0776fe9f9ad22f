"""What the live line tells of a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.reporting import Reporter


@pytest.mark.parametrize(
    ("extra", "end"),
    [
        ({}, "ETA 0:00:00"),
        ({"data/skipped_samples": 0.0, "data/skipped_blocks": 0.0}, "ETA 0:00:00"),
        ({"data/skipped_samples": 1330.0}, "ETA 0:00:00 | 1,330 samples of damaged blocks left out"),
    ],
)
def test_samples_that_were_left_out_are_in_the_live_line(extra: dict[str, float], end: str) -> None:
    told: list[str] = []
    job: Any = SimpleNamespace(
        config=SimpleNamespace(training=SimpleNamespace(train_steps=5)),
        topology=SimpleNamespace(is_main=True),
        claim=SimpleNamespace(check=lambda: None),
        stream=SimpleNamespace(consumed_samples=80, consumed_tokens=640, epochs=dict),
        engine=SimpleNamespace(
            loss_scale=SimpleNamespace(metrics=dict),
            pending_reads=SimpleNamespace(take_waited_seconds=lambda: 0.0),
        ),
        extra_metrics=lambda: extra,
        ledger=None,
        flops_per_step=0.0,
    )
    metrics: Any = SimpleNamespace(write=lambda step, values: None, live=told.append)
    result: Any = SimpleNamespace(losses={"loss": 2.5}, grad_norm=1.0)
    bad_steps: Any = SimpleNamespace(skipped=0, rollbacks=0)
    Reporter(job, metrics, 4).step(5, 1e-3, result, bad_steps)
    assert told[0].startswith("step 5/5 | loss 2.5000") and told[0].endswith(end)
