"""The training step against its peers: tokens a second, share of the machine's limit, memory.

    python -m benchmarks.training_step                 # GPT, one rank
    python -m benchmarks.training_step --work bert-128
    python -m benchmarks.training_step --work gpt-fp32 # all in fp32
    python -m benchmarks.training_step --ranks         # GPT on two ranks beside one with every core

Every candidate is a process of its own with the same number of threads in all. They take turns: each runs a
round of steps while the others wait, and the next repeat begins again with the first, so that a busy machine
hits all alike. Look at the ratios. benchmarks/training/peers.py says what arithmetic each one does. On a CPU
without bf16 products the peers take fp32, which is their best there, whatever we compute in.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.training.candidate import CANDIDATES, TWO_RANKS
from benchmarks.training.limits import product_precision
from benchmarks.training.processes import Candidate, measured_limits
from benchmarks.training.work import WORKS, Work

OURS = "headwater"
WARM_UP_STEPS = 6
"""Steps that do not count: they compile, and take memory from the kernel."""


def main() -> None:
    """Measure and print markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", choices=list(WORKS), default="gpt")
    parser.add_argument("--ranks", action="store_true", help="layouts on two ranks instead of peers")
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), help="these candidates, beside ours")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps in a round")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the tokens/s of all, too")
    arguments = parser.parse_args()
    names = arguments.only or default_names(arguments.work, arguments.ranks)
    work = WORKS[arguments.work]
    limits = None if work.update_only else measured_limits(arguments.work)
    answers = take_turns(arguments.work, names, arguments.repeats, arguments.steps)
    print(report(work, answers, limits, arguments.steps))
    if arguments.plot:
        plot(work, answers, arguments.plot)


def default_names(work: str, ranks: bool) -> list[str]:
    """The candidates of a table."""
    if ranks:
        return [name for name in CANDIDATES if name.endswith(TWO_RANKS)] + [OURS]
    if WORKS[work].update_only:
        return ["headwater model, plain loop", OURS]
    others = {"fp32": {"amp", "bf16"}, "bf16": {"fp32"}}[product_precision(WORKS[work])]
    chosen = [name for name in CANDIDATES if not name.endswith(TWO_RANKS) and others.isdisjoint(name.split())]
    if WORKS[work].kind != "gpt":
        chosen = [name for name in chosen if not name.startswith(("torch", "megatron"))]
    return chosen


def take_turns(work: str, names: list[str], repeats: int, steps: int) -> dict[str, list[dict[str, Any]]]:
    """A round of each in turn, `repeats` times, after one that warms up."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        candidates = []
        for name in names:  # one after the other: starting and compiling take all cores
            candidate = stack.enter_context(Candidate(work, name))
            candidate.round(max(WARM_UP_STEPS, steps))
            candidates.append(candidate)
        for _ in range(repeats):
            for candidate in candidates:
                answers[candidate.name].append(candidate.round(steps))
    return answers


def report(
    work: Work, answers: dict[str, list[dict[str, Any]]], limits: dict[str, float] | None, steps: int
) -> str:
    """The table, and what it was measured on."""
    repeats = len(next(iter(answers.values())))
    what = "update only" if work.update_only else f"sequences of {work.seq_length}, batch {work.batch_size}"
    lines = [
        f"### {work.kind}, {what}, {work.precision}",
        "",
        f"{work.num_layers} layers, hidden {work.hidden_size}, vocabulary {work.vocab_size:,}; {describe()}. "
        f"{repeats} repeats of {steps} steps.",
    ]
    if limits:
        lines[-1] += (
            f" In {product_precision(work)}, matrix products at the step's shapes: "
            f"{limits['products'] / 1e9:.0f} GFLOP/s (2048 square: {limits['square'] / 1e9:.0f}); "
            f"memory copy {limits['copy'] / 1e9:.1f} GB/s; a step has {limits['flops'] / 1e9:.0f} GFLOP."
        )
    lines += [
        "",
        "| | ms a step, median | least to most | CPU ms | tokens/s | ours / this | in CPU time | % of limit "
        "| peak MB | own MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [row(name, work, answers, limits) for name in answers])


def row(
    name: str, work: Work, answers: dict[str, list[dict[str, Any]]], limits: dict[str, float] | None
) -> str:
    """One candidate's line; ratios of speed are medians over rounds that stood side by side."""
    rounds, tokens = answers[name], work.batch_size * work.seq_length
    seconds = [answer["seconds"] for answer in rounds]
    middle = statistics.median(seconds)
    cpu = statistics.median(answer["cpu_seconds"] for answer in rounds)
    ratios = ["-", "-"]
    if OURS in answers:
        pairs = list(zip(rounds, answers[OURS], strict=True))
        ratios = [
            f"{statistics.median(them[key] / we[key] for them, we in pairs):.3f}"
            for key in ("seconds", "cpu_seconds")
        ]
    rate, share = "-", "-"
    if limits:
        rate = f"{tokens / middle:,.0f}"
        share = f"{100 * limits['flops'] / middle / limits['products']:.0f} %"
    peak, above = rounds[-1]["peak_rss"], rounds[-1]["peak_rss"] - rounds[-1]["base_rss"]
    return (
        f"| {name} | {1e3 * middle:,.0f} | {1e3 * min(seconds):,.0f} to {1e3 * max(seconds):,.0f} "
        f"| {1e3 * cpu:,.0f} | {rate} | {ratios[0]} | {ratios[1]} | {share} | {peak / 1e6:,.0f} "
        f"| {above / 1e6:,.0f} |"
    )


def plot(work: Work, answers: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Bars of the median tokens/s with the least and the most of all repeats."""
    from matplotlib.figure import Figure

    tokens = work.batch_size * work.seq_length
    rates = [[tokens / answer["seconds"] for answer in rounds] for rounds in answers.values()]
    middle = [statistics.median(rate) for rate in rates]
    spread = [[m - min(rate), max(rate) - m] for m, rate in zip(middle, rates, strict=True)]
    figure = Figure(figsize=(8, 1 + 0.35 * len(answers)), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:blue" if name.startswith(OURS) else "tab:gray" for name in answers]
    axes.barh(list(answers), middle, xerr=list(zip(*spread, strict=True)), color=colors, capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s")
    axes.set_title(f"{work.kind}, {work.seq_length} tokens x {work.batch_size}, {work.precision}")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
