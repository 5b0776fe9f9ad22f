"""Whole pretraining attempts inside a RankPool: as `pretrain.session` runs them, process groups kept."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch


def attempt(
    config: dict[str, Any], first_step: int = 1, planted: dict[int, tuple[int, float]] | None = None
) -> int:
    """Run or continue a pretraining job on this rank; its exit code, also that of an error.

    Args:
        config: of the run.
        first_step: that this attempt does.
        planted: step -> (rank, factor on its loss); rank -1 for all.
    """
    import torch.distributed as dist

    from pretrain import session
    from pretrain.config.load import parse_section
    from pretrain.config.schema import RunConfig
    from pretrain.stop import StopSignals
    from pretrain.train import run_main

    engines = []

    class RecordedEngine(session.Engine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            engines.append(self)
            self.step_now = first_step - 1

        def begin_step(self, micro_batches: int) -> None:
            super().begin_step(micro_batches)
            self.step_now += 1

        def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
            rank, factor = (planted or {}).get(self.step_now, (-2, 1.0))
            factor = factor if self.model.training and rank in (-1, dist.get_rank()) else 1.0
            return {name: value * factor for name, value in super().forward(batch).items()}

    with patch.object(session, "leave_process_group", lambda: None):
        with patch.object(session, "Engine", RecordedEngine):
            code = run_main(lambda: session.pretrain(parse_section(RunConfig, config, "test"), StopSignals()))
    for engine in engines:
        engine.close()  # the pool's processes go on; the next attempt brings an engine of its own
    return code
