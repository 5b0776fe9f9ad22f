"""`headwater parity`: is a run's model computed right at every layout? On CPU ranks, before any GPU."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from data_tools.publish import require_file, write_file
from pretrain.config import ConfigError, load_config
from pretrain.config.arguments import add_run_arguments, positive_int
from pretrain.parity.layouts import Layout, product_of_layouts
from pretrain.parity.shrink import shrunk

MISMATCH_EXIT_CODE = 1
PROBE = "pretrain.parity.probe:trace_layout"
USUAL = (
    "tp1 dp1 zero0",
    "tp2 dp1 zero0",
    "tp1 dp2 zero1 acc4",
    "tp2 dp1 zero1 sp",
    "tp1 dp2 zero2",
    "tp1 dp2 zero3 recompute-full",
    "tp2 dp1 zero3 sp recompute-selective",
    "tp2 dp1 zero1 bf16 sp",
    "tp1 dp2 zero2 bf16 acc4",
    "tp2 dp2 zero2 sp",
)
EXAMPLES = """examples:
  headwater parity --config configs/gpt/tiny.yaml
  headwater parity --config configs/bert/base.yaml --layouts "tp2 dp2 zero3 sp bf16" "tp4 zero1 acc4"
  headwater parity --config configs/gpt/tiny.yaml --all --nproc 8 --out all.md     every allowed layout
  headwater parity --config configs/gpt/tiny.yaml --all --nproc 8 --out all.md --resume     what it lacks

A layout is words: tpN dpN zeroN accN (accumulated micro-batches), fp32 bf16 fp16, sp, recompute-selective,
recompute-full, offload-optimizer, offload-parameters, offload-both, hpz.

exit codes: 0 all equal, 1 a layout differs or fails, 2 wrong input
"""
HEAD = ("layout", "loss", "grad norm", "worst gradient", "worst update", "weight", "verdict")


def main(argv: Sequence[str], probe: str = PROBE) -> int:
    """Compare layouts with one rank, print a table; returns the exit code.

    Args:
        argv: The words after `headwater parity`.
        probe: What runs on the ranks; the tests plant faults there.
    """
    args = _parser().parse_args(argv)
    base = shrunk(load_config(args.config, args.overrides))
    layouts = _chosen(args)
    if args.out:
        require_file(args.out)
    rows = _equal_rows(args)
    known = {row[0] for row in rows}
    missing = [layout for layout in layouts if str(layout) not in known]
    os.environ["DS_ACCELERATOR"] = "cpu"
    from pretrain.parity import run  # torch and DeepSpeed, for which --help does not wait

    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        log = str(Path(directory) / "ranks.log")  # DeepSpeed prints much; what goes wrong is a RankError
        _print(HEAD)
        for layout, row, faults in run.compared(base, missing, probe, log):
            _print(row)
            rows.append(row)
            wrong += [f"{layout}: {fault}" for fault in faults]
            if args.out:
                write_file(args.out, _markdown(args, rows).encode())
    for text in wrong:
        print(f"DIFFERS {text}")
    print(
        f"{len(layouts) - len({t.partition(':')[0] for t in wrong})} of {len(layouts)} layouts equal one rank"
    )
    return MISMATCH_EXIT_CODE if wrong else 0


def _chosen(args: argparse.Namespace) -> list[Layout]:
    try:
        layouts = [Layout.parse(text) for text in args.layouts or USUAL]
    except ValueError as error:
        raise ConfigError(f"--layouts: {error}") from None
    if args.all:
        layouts = list(product_of_layouts(("fp32", "bf16", "fp16")))
    refused = [f"{layout}: {reason}" for layout in layouts for reason in layout.refusals()]
    if refused:
        raise ConfigError(refused, source="--layouts")
    too_large = [layout for layout in layouts if layout.world_size > args.nproc]
    if too_large:
        if args.layouts:
            raise ConfigError(
                f"--layouts: {too_large[0]} takes {too_large[0].world_size} ranks; raise --nproc"
            )
        print(f"left out: {len(too_large)} layouts of more than {args.nproc} ranks (--nproc)")
    # Ranks are started once for all layouts of their number.
    return sorted((x for x in layouts if x.world_size <= args.nproc), key=lambda layout: layout.world_size)


def _print(row: Sequence[str]) -> None:
    widths = (48, 8, 9, 58, 58, 8, 0)
    print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def _equal_rows(args: argparse.Namespace) -> list[tuple[str, ...]]:
    """Layouts of FILE that were found equal; none unless they are to be kept."""
    if not args.resume:
        return []
    if not args.out:
        raise ConfigError("--resume: takes --out FILE, the table to go on with")
    if not args.out.exists():
        return []
    heading, *lines = args.out.read_text(encoding="utf-8").splitlines() or [""]
    if heading != _heading(args):
        raise ConfigError(
            f"{args.out} begins with {heading!r}, not with {_heading(args)!r}; choose another --out"
        )
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines if line.startswith("|")]
    return [row for row in rows if row[-1] == "equal"]


def _heading(args: argparse.Namespace) -> str:
    names = ("torch", "deepspeed", "megatron-core")
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)
    changed = "".join(f" {text}" for text in args.overrides)
    return f"`{args.config}{changed}` shrunk, 20 steps, CPU ranks over gloo; {versions}."


def _markdown(args: argparse.Namespace, rows: Sequence[Sequence[str]]) -> str:
    lines = [_heading(args), ""]
    lines += [f"| {' | '.join(row)} |" for row in (HEAD, ["---"] * len(HEAD), *rows)]
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater parity",
        description="Shrink a run's model, train it at many layouts on CPU ranks, compare with one rank.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--layouts", nargs="+", metavar="LAYOUT", help="what to compare; a usual set by default"
    )
    which.add_argument("--all", action="store_true", help="every allowed layout")
    parser.add_argument(
        "--nproc",
        type=positive_int,
        default=4,
        metavar="N",
        help="ranks at most, 8 for all layouts (default 4)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as Markdown, row by row")
    parser.add_argument(
        "--resume", action="store_true", help="keep the equal layouts of --out FILE, run the others"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
