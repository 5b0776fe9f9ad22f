"""fp16's dynamic loss scale (Micikevicius et al., 2018), which DeepSpeed keeps inside its optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What changes in DeepSpeed's scaler during a run."""


class LossScale:
    """The loss scale of an engine; at other precisions than fp16 there is none, and nothing happens.

    Attributes:
        overflows: Updates of the run that were skipped because gradients overflowed.
    """

    def __init__(self, optimizer: Any, precision: str) -> None:
        self._scaler: Any = None
        if precision == "fp16":
            self._scaler = optimizer.loss_scaler
        self.overflows = 0
        if self.is_dynamic:
            self._scaler.raise_error_at_min_scale = False  # a bare Exception; the loop has a better message

    @property
    def is_dynamic(self) -> bool:
        """Whether an overflow lowers the scale; `deepspeed.fp16.loss_scale` fixes it."""
        return self._scaler is not None and bool(self._scaler.dynamic)

    def can_lower(self) -> bool:
        """Whether an overflow now would be answered by a lower scale, rather than be the end of the run."""
        return self.is_dynamic and bool(self._scaler.cur_scale > self._scaler.min_scale)

    def metrics(self) -> dict[str, float]:
        """For the log; empty without a loss scale."""
        if self._scaler is None:
            return {}
        return {"loss_scale": float(self._scaler.cur_scale), "overflow_steps": float(self.overflows)}

    def state(self) -> dict[str, float]:
        """For a checkpoint, JSON-able and the same on every rank; empty without a loss scale."""
        if self._scaler is None:
            return {}
        fields = {name: getattr(self._scaler, name) for name in _FIELDS if hasattr(self._scaler, name)}
        return fields | {"overflows": self.overflows}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on with a saved scale; a checkpoint of another precision has none, and leaves the fresh one.

        A fixed scale (`deepspeed.fp16.loss_scale`) stays what the configuration says.
        """
        if not self.is_dynamic or not state:
            return
        self.overflows = int(state["overflows"])
        for name in _FIELDS:
            if name in state:
                setattr(self._scaler, name, state[name])
