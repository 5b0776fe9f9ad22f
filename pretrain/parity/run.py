"""Running layouts on ranks of this machine, and judging them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from pretrain.config import RunConfig
from pretrain.parity.compare import TOLERANCES, Difference, compare
from pretrain.parity.layouts import Layout, laid_out
from pretrain.parity.pool import RankError, RankPool
from pretrain.parity.probe import Trace

STEPS = 20


def reference(base: RunConfig, log: str) -> Trace:
    """What one rank computes in fp32 with plain torch."""
    with RankPool(1, log=log) as pool:
        trace: Trace = pool.run("pretrain.parity.probe:trace_reference", config=base, steps=STEPS)[0]
    return trace


def traces(
    base: RunConfig, layouts: Sequence[Layout], probe: str, log: str
) -> Iterator[tuple[Layout, Trace | RankError]]:
    """What each layout computes, or how it failed; ranks are started once for all layouts of a size."""
    waiting = defaultdict(list)
    for layout in layouts:
        waiting[layout.world_size].append(layout)
    for size, some in waiting.items():
        pool = RankPool(size, log=log)
        try:
            for layout in some:
                try:
                    yield layout, pool.run(probe, config=laid_out(base, layout), steps=STEPS)[0]
                except RankError as error:
                    pool.__exit__(None, None, None)  # the other ranks may wait for the one that failed
                    pool = RankPool(size, log=log)
                    yield layout, error
        finally:
            pool.__exit__(None, None, None)


def compared(
    base: RunConfig, layouts: Sequence[Layout], probe: str, log: str
) -> Iterator[tuple[Layout, tuple[str, ...], list[str]]]:
    """Each layout with its row of the table and what is wrong with it; without layouts nothing is started."""
    if layouts:
        wanted = reference(base, log)
        for layout, trace in traces(base, layouts, probe, log):
            row, faults = judged(layout, trace, wanted)
            yield layout, row, faults


def judged(layout: Layout, trace: Any, reference: Trace) -> tuple[tuple[str, ...], list[str]]:
    """The row of a layout in the table, and what is wrong with it."""
    if isinstance(trace, RankError):
        reason = str(trace).strip().splitlines()[-1]
        return (str(layout), *"-----", "FAILS"), [reason]
    difference: Difference = compare(trace, reference)
    faults = difference.faults(TOLERANCES[layout.precision])
    row = (
        str(layout),
        f"{difference.loss:.1e}",
        f"{difference.norm:.1e}",
        f"{difference.gradient:.1e} {difference.gradient_of}",
        f"{difference.update:.1e} {difference.update_of}",
        f"{difference.weight:.1e}",
        "DIFFERS" if faults else "equal",
    )
    return row, faults
