"""A job as `pretrain.saving.Saves` sees it, of one rank, without engine and process groups."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def job_that_saves(config: Any) -> tuple[SimpleNamespace, SimpleNamespace]:
    """The job, and what stands in for its bad steps, reporter and watchdog."""
    nothing = SimpleNamespace(
        state_dict=dict, enter=lambda *_: None, stalled=lambda *_: None, say=lambda *_: None
    )
    job = SimpleNamespace(
        config=config,
        claim=SimpleNamespace(attempt="now", check=lambda: None),
        stream=SimpleNamespace(consumed_samples=0, state_dict=dict),
        topology=SimpleNamespace(is_main=True),
        watchdog=nothing,
        engine=None,
        extra_files={},
        ledger=None,
    )
    return job, nothing
