"""`headwater simulate`: one rank of a job of any size, built here: shapes, parameters, memory; no values."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pretrain.config import ConfigError, RunConfig, load_config
from pretrain.config.arguments import add_run_arguments, positive_int
from pretrain.config.derive import optimizer_bytes, weight_bytes

EXAMPLES = """examples:
  headwater simulate --config configs/gpt/175b.yaml --nproc 1024 --rank 777
  headwater simulate --config configs/gpt/13b.yaml --nproc 64 --set parallel.zero_stage=3

The rank joins a process group that only pretends, and its tensors have shapes and no storage.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A parameter as one rank has it."""

    name: str
    shape: tuple[int, ...]
    split: bool
    """Whether tensor parallelism cuts it; the others are whole on every rank."""

    @property
    def numel(self) -> int:
        """Elements on this rank."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Memory of one rank at a ZeRO stage, in bytes."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer


def rank_slices(config: RunConfig, rank: int, world_size: int) -> list[Slice]:
    """Build rank `rank` on meta tensors in a pretended process group; once in a process."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", DS_ACCELERATOR="cpu"
    )  # read by initialize_topology
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from pretrain.models import build_model
    from pretrain.parallel.topology import initialize_topology

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    initialize_topology(config.parallel.tensor_model_parallel_size)
    with torch.device("meta"):
        model = build_model(config)
    return [
        Slice(name=name, shape=tuple(p.shape), split=bool(getattr(p, "tensor_model_parallel", False)))
        for name, p in model.named_parameters()
    ]


def state_bytes(slices: Iterable[Slice], data_ranks: int, stage: int, precision: str) -> StateBytes:
    """What DeepSpeed keeps for these parameters.

    Stage 1 cuts one flat tensor of optimizer states, stage 2 also that of the gradients; stage 3 cuts every
    parameter by itself, the last part padded. Gradients are summed in fp32 at every precision.
    """
    sizes = [one.numel for one in slices]
    flat = math.ceil(sum(sizes) / data_ranks)
    parts = sum(math.ceil(size / data_ranks) for size in sizes)
    cut = parts if stage == 3 else flat
    states = cut if stage else sum(sizes)
    return StateBytes(
        weights=weight_bytes(precision) * (cut if stage == 3 else sum(sizes)),
        gradients=4 * (cut if stage >= 2 else sum(sizes)),
        optimizer=optimizer_bytes(precision, stage, data_ranks) * states,
    )


def main(argv: Sequence[str]) -> int:
    """Print what one rank holds; returns the exit code."""
    args = _parser().parse_args(argv)
    config = load_config(args.config, args.overrides, args.nproc)
    if not 0 <= args.rank < args.nproc:
        raise ConfigError(f"--rank: {args.rank} is not one of {args.nproc} ranks, 0 to {args.nproc - 1}")
    slices = rank_slices(config, args.rank, args.nproc)
    tp = config.parallel.tensor_model_parallel_size
    data_ranks = args.nproc // tp
    here = sum(one.numel for one in slices)
    whole = sum(one.numel * (tp if one.split else 1) for one in slices)
    print(f"{args.config}: rank {args.rank} of {args.nproc} = TP {tp} x DP {data_ranks}")
    print(f"  tensor-parallel rank {args.rank % tp}, data-parallel rank {args.rank // tp}")
    print(f"  {here:,} parameters on this rank, {whole:,} in the model")
    for pattern, shape, split, count in _grouped(slices):
        times = f"{count} x " if count > 1 else ""
        print(f"    {pattern:<60} {times}{list(shape)}{' of ' + str(tp) if split else ''}")
    print(f"  GiB of this rank in {config.precision}  weights  gradients  optimizer    total")
    for stage in range(4):
        held = state_bytes(slices, data_ranks, stage, config.precision)
        cells = [value / 2**30 for value in (held.weights, held.gradients, held.optimizer, held.total)]
        mark = " <- configured" if stage == config.parallel.zero_stage else ""
        print(f"    ZeRO {stage}                  " + "".join(f"{cell:>10.2f}" for cell in cells) + mark)
    return 0


def _grouped(slices: Sequence[Slice]) -> list[tuple[str, tuple[int, ...], bool, int]]:
    """Parameters of equal name but for the layer's number, in one line."""
    found: dict[tuple[str, tuple[int, ...], bool], int] = {}
    for one in slices:
        pattern = ".".join("*" if part.isdigit() else part for part in one.name.split("."))
        key = (pattern, one.shape, one.split)
        found[key] = found.get(key, 0) + 1
    return [(*key, count) for key, count in found.items()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater simulate",
        description="Build one rank of a large job on this CPU, without its values: shapes and memory.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument("--nproc", type=positive_int, required=True, metavar="N", help="ranks of the job")
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="which one to build (default 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
