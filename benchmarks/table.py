"""Runs competitors in turn and prints what came out as a markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

Run = Callable[[], float]
"""Measures once; returns a rate."""


def interleave(runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    """Rates of each competitor; every round runs each of them once, so that a busy spell hits all alike."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            rates[name].append(run())
    return rates


def print_table(title: str, unit: str, rates: Mapping[str, list[float]], ours: str) -> None:
    """Print medians, the spread, and how many times faster than each competitor `ours` is."""
    best = statistics.median(rates[ours])
    print(f"\n{title}\n\n| | {unit}, median | least to most | {ours} / this |\n|---|---|---|---|")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:,.0f} | {min(values):,.0f} to {max(values):,.0f} | {best / middle:.2f} |")
