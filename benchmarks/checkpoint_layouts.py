"""The table of docs/checkpoint-layouts-measured.md: a checkpoint of every layout resumed at every other one.

    python -m benchmarks.checkpoint_layouts --out docs/checkpoint-layouts-measured.md

At each source layout a shrunk model trains 3 steps, saves, and trains 5 more: the run that never stopped. At
each target layout a fresh engine with other weights loads the checkpoint; then all weights and moments must
be those of the source at the save, bit for bit, and the 5 steps must give the source's losses. Ranks are
started once per world size. Exit code 1 when a pair differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config import RunConfig, load_config
from pretrain.parity.layouts import Layout, laid_out
from pretrain.parity.pool import IMPORTS, RankPool
from pretrain.parity.shrink import shrunk

BEFORE, AFTER = 3, 5
BOUND = 1e-5
"""Of losses and gradient norms in fp32, relative."""
BOUND_BF16 = 5e-4
"""As in pretrain.parity.compare: what rounding to bf16 leaves of a loss; of a norm ten times that."""
LAYOUTS = [Layout(tp=tp, dp=dp, zero=zero) for tp, dp in ((1, 2), (2, 1), (2, 2)) for zero in range(4)]
CONFIGS = {"gpt": "gpt/tiny", "bert": "bert/tiny", "untied": "gpt/llama-tiny"}
KINDS = ("master", "exp_avg", "exp_avg_sq")
HERE = "benchmarks.checkpoint_layouts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Part of a run, as its main rank has seen it."""

    state: dict[str, np.ndarray]
    """Whole weights and moments at the checkpoint, "KIND/NAME" -> fp32."""
    losses: list[float]
    norms: list[float]
    """Of the AFTER steps behind it."""
    weights: dict[str, np.ndarray]
    """After the last step."""


def leave(config: RunConfig) -> Course:
    """On every rank: train, save in `config.run_dir`, train on."""
    from pretrain.checkpoint import save_checkpoint
    from pretrain.parity.batches import micro_batches

    engine, topology = _engine(config, config.seed)
    _steps(engine, config, range(BEFORE))
    probe = micro_batches(config, BEFORE - 1, topology.data_parallel_rank, topology.data_parallel_size)[0]
    save_checkpoint(engine, config, {"step": BEFORE}, {}, probe)
    return _course(engine, config)


def resume(config: RunConfig, directory: str) -> Course:
    """On every rank: load a checkpoint into a fresh engine and train on."""
    from pretrain.checkpoint import load_checkpoint

    engine, _ = _engine(config, config.seed + 1)
    load_checkpoint(engine, Path(directory))
    return _course(engine, config)


def _course(engine: Any, config: RunConfig) -> Course:
    state = {f"{kind}/{name}": value for kind in KINDS for name, value in _whole(engine, kind).items()}
    losses, norms = _steps(engine, config, range(BEFORE, BEFORE + AFTER))
    weights = _whole(engine, "master")
    engine.close()
    return Course(state=state, losses=losses, norms=norms, weights=weights)


def _engine(config: RunConfig, seed: int) -> tuple[Any, Any]:
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from pretrain.parity.probe import fresh_model

    topology = initialize_topology(config.parallel.tensor_model_parallel_size)
    model = fresh_model(config.model_copy(update={"seed": seed}), topology)
    return Engine(config, model, build_optimizer(model, config.optimizer), topology), topology


def _steps(engine: Any, config: RunConfig, steps: Sequence[int]) -> tuple[list[float], list[float]]:
    from pretrain.parallel.rng import seed_step
    from pretrain.parity.batches import micro_batches
    from pretrain.step import train_step

    topology, results = engine.topology, []
    for step in steps:
        seed_step(config.seed, step, topology)
        batches = micro_batches(config, step, topology.data_parallel_rank, topology.data_parallel_size)
        results.append(train_step(engine, batches, lr=1e-3))
    return [result.losses["loss"] for result in results], [result.grad_norm for result in results]


def _whole(engine: Any, kind: str) -> dict[str, np.ndarray]:
    from pretrain.parity.probe import gather_whole

    return {name: tensor.numpy() for name, tensor in gather_whole(engine, kind).items()}


@dataclass(frozen=True, slots=True)
class Pair:
    """A source, a target, and how far the resumed run is from the one that never stopped."""

    source: Layout
    target: Layout
    changed: int
    """Weights and moments (whole tensors) that did not arrive bit for bit."""
    loss: float
    norm: float
    weight: float
    """Largest difference after the last step: relative for losses and norms, absolute for a weight."""

    @property
    def equal(self) -> bool:
        """Whether the resumed run is the one that never stopped."""
        rounded = "bf16" in (self.source.precision, self.target.precision)
        loss, norm = (BOUND_BF16, 10 * BOUND_BF16) if rounded else (BOUND, BOUND)
        return not self.changed and self.loss <= loss and self.norm <= norm


def pairs(
    base: RunConfig, chosen: Sequence[tuple[Layout, Layout]], root: Path, pools: dict[int, RankPool]
) -> Iterator[Pair]:
    """Run the chosen (source, target) pairs."""
    courses: dict[Layout, Course] = {}
    for source, target in chosen:
        run_dir = root / str(source).replace(" ", "-")
        if source not in courses:
            config = laid_out(base, source).model_copy(update={"run_dir": str(run_dir)})
            courses[source] = pools[source.world_size].run(f"{HERE}:leave", config=config)[0]
        directory = str(run_dir / "checkpoints" / f"step-{BEFORE:08d}")
        pool = pools[target.world_size]
        resumed = pool.run(f"{HERE}:resume", config=laid_out(base, target), directory=directory)[0]
        yield compared(source, target, courses[source], resumed)


def compared(source: Layout, target: Layout, undisturbed: Course, resumed: Course) -> Pair:
    """Measure a resumed run against the one that never stopped."""
    assert undisturbed.state.keys() == resumed.state.keys() and len(undisturbed.losses) == AFTER
    return Pair(
        source,
        target,
        sum(not np.array_equal(want, resumed.state[name]) for name, want in undisturbed.state.items()),
        _relative(resumed.losses, undisturbed.losses),
        _relative(resumed.norms, undisturbed.norms),
        max(float(np.abs(resumed.weights[name] - want).max()) for name, want in undisturbed.weights.items()),
    )


def _relative(got: Sequence[float], want: Sequence[float]) -> float:
    found = [abs(a - b) / abs(b) for a, b in zip(got, want, strict=True)]
    return max(float("inf") if value != value else value for value in found)


def some(step_sizes: Sequence[int]) -> list[tuple[Layout, Layout]]:
    """Each layout into those so many places further: each is source and target equally often."""
    return [(LAYOUTS[i], LAYOUTS[(i + n) % 12]) for i in range(12) for n in step_sizes]


def precision_changes() -> list[tuple[Layout, Layout]]:
    """fp32 and bf16 into each other and bf16 into itself, the layout changing too; ZeRO 0 has no bf16."""
    changes = (("fp32", "bf16"), ("bf16", "fp32"), ("bf16", "bf16"))
    shapes = (((1, 2), 1, (2, 1), 3), ((2, 2), 3, (1, 2), 2), ((2, 1), 2, (2, 2), 1))
    return [
        (
            Layout(tp=a[0], dp=a[1], zero=zero_a, precision=before),
            Layout(tp=b[0], dp=b[1], zero=zero_b, precision=after),
        )
        for before, after in changes
        for a, zero_a, b, zero_b in shapes
    ]


SECTIONS = {
    "gpt": ("GPT, tied head, fp32: all 12 x 12", "gpt", list(product(LAYOUTS, LAYOUTS))),
    "bert": ("BERT (MLM + NSP), fp32", "bert", some((5, 7))),
    "untied": ("Llama-style GPT, untied head, fp32", "untied", some((5, 7))),
    "precision": ("GPT, other precision", "gpt", precision_changes()),
}
HEAD = ("from", "to", "losses", "gradient norms", "a weight after 5 steps", "state after loading", "verdict")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections asked for, print a table of each; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, help="write the tables as Markdown, behind what the file has")
    args = parser.parse_args(argv)
    lines, wrong = [], 0
    with tempfile.TemporaryDirectory() as directory:
        log = str(Path(directory) / "ranks.log")
        imports = [*IMPORTS, HERE]
        with RankPool(2, imports, log) as two, RankPool(4, imports, log) as four:
            for name in args.sections:
                title, kind, chosen = SECTIONS[name]
                root = Path(directory) / name
                base = shrunk(load_config(Path(f"configs/{CONFIGS[kind]}.yaml")))
                found = []
                for pair in pairs(base, chosen, root, {2: two, 4: four}):
                    found.append(pair)
                    print(" | ".join(row(pair)), flush=True)
                wrong += sum(not pair.equal for pair in found)
                lines += section(title, found)
    print("\n".join(lines))
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return 1 if wrong else 0


def section(title: str, found: Sequence[Pair]) -> list[str]:
    """Markdown of one table."""
    names = ("torch", "deepspeed", "megatron-core")
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)
    equal = sum(pair.equal for pair in found)
    largest = max(pair.loss for pair in found)
    head = [
        f"## {title}",
        "",
        f"{equal} of {len(found)} pairs equal; losses differ by {largest:.1e} at most. ",
    ]
    head[-1] += f"{versions}."
    table = [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *map(row, found))]
    return [*head, "", *table, ""]


def row(pair: Pair) -> tuple[str, ...]:
    """Cells of one pair."""
    return (
        _name(pair.source),
        _name(pair.target),
        f"{pair.loss:.1e}",
        f"{pair.norm:.1e}",
        f"{pair.weight:.1e}",
        f"{pair.changed} tensors changed" if pair.changed else "equal bits",
        "equal" if pair.equal else "DIFFERS",
    )


def _name(layout: Layout) -> str:
    name = f"TP{layout.tp} DP{layout.dp} ZeRO {layout.zero}"
    return name if layout.precision == "fp32" else f"{name} {layout.precision}"


if __name__ == "__main__":
    sys.exit(main())
