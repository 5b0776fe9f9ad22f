"""What all ranks agree on before each update: is this step bad, is it time to stop, did a save fail."""

from __future__ import annotations

from collections.abc import Callable

from pretrain.bad_steps import BadSteps
from pretrain.parallel.collectives import largest_over_ranks
from pretrain.parallel.topology import Topology


class Consent:
    """One small all-reduce a step carries every decision that ranks could differ in.

    Attributes:
        stop: a rank was asked to stop, or a save failed on one; the same on every rank.
    """

    def __init__(self, topology: Topology, bad_steps: BadSteps, wants_stop: Callable[[], bool]) -> None:
        self._topology, self._bad_steps = topology, bad_steps
        self._wants_stop = wants_stop
        self.stop = False

    def accept(self, step: int, loss: float) -> bool:
        """Whether to apply the update of a step; called by all ranks together."""
        bad, stop = self._ask(self._bad_steps.suspicion(step, loss))
        self.stop = self.stop or stop
        return not self._bad_steps.condemn(step, loss, bad)

    def stop_now(self) -> bool:
        """Whether to stop, outside of a step; called by all ranks together."""
        self.stop = self.stop or self._ask(0)[1]
        return self.stop

    def _ask(self, suspicion: int) -> tuple[int, bool]:
        mine = [suspicion, int(self._wants_stop())]
        bad, stop = largest_over_ranks(mine, self._topology.device)
        return bad, bool(stop)
