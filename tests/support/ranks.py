"""Real ranks for tests; start one pool per test module and run every layout in it."""

from __future__ import annotations

from pretrain.parity.pool import RankPool as Pool


class RankPool(Pool):
    """Ranks that have imported what the tests need."""

    def __init__(self, world_size: int) -> None:
        super().__init__(world_size, imports=["tests.support.imports"])
