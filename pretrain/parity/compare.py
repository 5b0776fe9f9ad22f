"""Differences between two traces, and what is tolerated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pretrain.parity.probe import Trace

SMALLEST = 1e-3
"""A parameter smaller than this share of the largest counts as that large: it holds rounding only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Largest differences to the one-rank fp32 reference that count as equal; see `Difference`."""

    loss: float
    norm: float
    gradient: float
    update: float
    weight: float


TOLERANCES = {
    "fp32": Tolerance(loss=1e-5, norm=1e-5, gradient=1e-5, update=1e-4, weight=1e-5),
    "bf16": Tolerance(loss=5e-4, norm=5e-3, gradient=6e-2, update=0.15, weight=1e-2),
    "fp16": Tolerance(loss=1e-4, norm=1e-3, gradient=1e-2, update=0.06, weight=1e-2),
}
"""fp32 differs by sums in another order. bf16 rounds every activation and every gradient of an activation to
2^-9 = 2e-3, fp16 to 2^-12: a dozen roundings in a row make 1e-2 of a gradient; means over many tokens lose
less. Adam turns an element whose sign is lost into a whole update, lr a step: weights are bounded by
10 x lr here, half of what 20 steps can do. docs/layouts.md has what was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far a layout is from the reference.

    Attributes:
        loss: Largest relative difference of a step's loss.
        norm: Largest relative difference of a step's gradient norm.
        gradient: Largest relative difference (L2) of a parameter's gradient in the first step.
        gradient_of: The parameter.
        update: Largest relative difference (L2) of what the steps changed of a parameter.
        update_of: The parameter.
        weight: Largest absolute difference of a weight after the last step.
    """

    loss: float
    norm: float
    gradient: float
    gradient_of: str
    update: float
    update_of: str
    weight: float

    def faults(self, limit: Tolerance) -> list[str]:
        """One sentence for each difference that is too large."""
        return [
            f"{what} differs by {value:.1e}, allowed is {allowed:.0e}"
            for what, value, allowed in (
                ("loss", self.loss, limit.loss),
                ("gradient norm", self.norm, limit.norm),
                (f"gradient of {self.gradient_of}", self.gradient, limit.gradient),
                (f"update of {self.update_of}", self.update, limit.update),
                (f"a weight of {self.update_of}", self.weight, limit.weight),
            )
            if value > allowed
        ]


def compare(trace: Trace, reference: Trace) -> Difference:
    """Measure a layout against the reference."""
    gradient_of, gradient = _worst(trace.gradients, reference.gradients, reference.gradients)
    changes = {name: reference.weights[name] - start for name, start in reference.start.items()}
    update_of, update = _worst(trace.weights, reference.weights, changes)
    apart = [float((trace.weights[name] - want).abs().max()) for name, want in reference.weights.items()]
    return Difference(
        loss=_relative(trace.losses, reference.losses),
        norm=_relative(trace.norms, reference.norms),
        gradient=gradient,
        gradient_of=gradient_of,
        update=update,
        update_of=update_of,
        weight=max(map(_number, apart)),
    )


def _worst(
    got: Mapping[str, Tensor], want: Mapping[str, Tensor], scale: Mapping[str, Tensor]
) -> tuple[str, float]:
    """The parameter with the largest root-mean-square difference in units of the scale's, and that."""
    sizes = {name: _rms(tensor) for name, tensor in scale.items()}
    least = SMALLEST * max(sizes.values())
    found = {name: _number(_rms(got[name] - want[name]) / max(sizes[name], least)) for name in want}
    worst = max(found, key=found.__getitem__)
    return worst, found[worst]


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


def _relative(got: Sequence[float], want: Sequence[float]) -> float:
    return max(_number(abs(a - b) / abs(b)) for a, b in zip(got, want, strict=True))


def _number(value: float) -> float:
    """Infinity for nan, which no comparison would find."""
    return math.inf if math.isnan(value) else value
