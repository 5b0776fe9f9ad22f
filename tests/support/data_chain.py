"""Whole pretraining attempts inside a RankPool: as `pretrain.session` runs them, process groups kept."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch


def attempt(config: dict[str, Any]) -> int:
    """Run or continue a pretraining job on this rank; its exit code."""
    from pretrain import session
    from pretrain.config.load import parse_section
    from pretrain.config.schema import RunConfig

    engines = []

    class RecordedEngine(session.Engine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            engines.append(self)

    with patch.object(session, "leave_process_group", lambda: None):
        with patch.object(session, "Engine", RecordedEngine):
            code = session.pretrain(parse_section(RunConfig, config, "test"))
    for engine in engines:
        engine.close()  # the pool's processes go on; the next attempt brings an engine of its own
    return code
