"""`headwater scaling`: what a step would cost on more ranks, from traffic and stated speeds; runs nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import SpeedConfig, load_cluster
from launch.estimate import readable_bytes
from launch.traffic import GRADIENTS, Traffic, gradient_bytes, step_traffic
from pretrain.config import ConfigError, RunConfig, load_config
from pretrain.config.arguments import add_run_arguments, positive_int
from pretrain.config.derive import (
    flops_per_step,
    gradient_accumulation_steps,
    padded_vocab_size,
    parameter_count,
    tokens_per_step,
)
from pretrain.config.layouts import is_offloaded

RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
GB = 1e9
EXAMPLES = """examples:
  headwater scaling --config configs/gpt/13b.yaml --cluster configs/cluster/slurm-a100.yaml
  headwater scaling --config configs/gpt/7b.yaml --cluster configs/cluster/slurm-h100.yaml --ranks 64 512 \\
      --set parallel.zero_stage=3

The cluster configuration's section `speed` says how fast devices and links are. docs/scaling.md explains.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step."""

    compute: float
    tensor: float
    """Collectives of tensor parallelism: the next layer waits for each of them."""
    data: float
    """Collectives of data parallelism."""
    exposed_data: float
    """Their part that nothing hides: what is longer than the computation at stage 3, which fetches weights
    ahead; at stage 1 in bf16 the weights, and gradients for longer than the last backward pass; else all."""

    @property
    def total(self) -> float:
        """The whole step."""
        return self.compute + self.tensor + self.exposed_data


def step_time(config: RunConfig, world_size: int, speed: SpeedConfig, ranks_per_node: int) -> StepTime:
    """Estimate a step; start-up latencies of collectives, the optimizer and stragglers are not in it."""
    again = 4 / 3 if config.training.recompute == "full" else 1.0
    compute = again * flops_per_step(config) / (world_size * speed.device_tflops * 1e12)
    seconds = {"tensor": 0.0, "data": 0.0}
    gradients = 0.0
    for traffic in step_traffic(config, world_size):
        took = traffic.sent_bytes / _link_rate(traffic, config, speed, ranks_per_node)
        seconds[traffic.dimension] += took
        gradients += took if traffic.purpose == GRADIENTS else 0.0
    exposed = seconds["data"]
    if config.parallel.zero_stage == 3:
        exposed = max(0.0, exposed - compute)
    elif _sums_early(config):
        forward = compute / (3 * again)
        backward = (compute - forward) / gradient_accumulation_steps(config, world_size)
        exposed -= min(gradients * (1.0 - _embedding_share(config)), backward)
    return StepTime(compute=compute, tensor=seconds["tensor"], data=seconds["data"], exposed_data=exposed)


def _sums_early(config: RunConfig) -> bool:
    """Whether gradients are summed while the last micro-batch goes backward (`FlatGradients`)."""
    offloads = is_offloaded(config.deepspeed.get("zero_optimization") or {}, "offload_optimizer")
    in_bf16 = config.precision == "bf16" and config.parallel.zero_stage == 1
    return in_bf16 and gradient_bytes(config) == 4 and not offloads


def _embedding_share(config: RunConfig) -> float:
    """The part of the gradients that is there only when the backward pass is over."""
    return padded_vocab_size(config.model) * config.model.hidden_size / parameter_count(config.model)


def _link_rate(traffic: Traffic, config: RunConfig, speed: SpeedConfig, ranks_per_node: int) -> float:
    """Bytes/s that a rank sends on the slowest link of its ring.

    Tensor-parallel ranks are neighbours; data-parallel ones stand so far apart as there are tensor-parallel
    ranks. Those of a group on one node share what leaves it: a ring enters and leaves a node once, through
    all of its cards.
    """
    tensor_ranks = config.parallel.tensor_model_parallel_size
    step = 1 if traffic.dimension == "tensor" else tensor_ranks
    within = speed.within_node_gb_per_second * GB
    if step * traffic.ranks <= ranks_per_node:
        return within
    return min(within, max(1, ranks_per_node // step) * speed.between_nodes_gb_per_second * GB)


def rows(
    config: RunConfig, world_sizes: Sequence[int], speed: SpeedConfig, ranks_per_node: int
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Cells of the table, and which numbers of ranks the run cannot have."""
    batch, tensor_ranks = config.batch, config.parallel.tensor_model_parallel_size
    lines: list[tuple[str, ...]] = []
    left_out = []
    for ranks in world_sizes:
        data_ranks, rest = divmod(ranks, tensor_ranks)
        if rest or not data_ranks or batch.global_batch_size % (data_ranks * batch.micro_batch_size):
            left_out.append(str(ranks))
            continue
        time = step_time(config, ranks, speed, ranks_per_node)
        sent = {"tensor": 0.0, "data": 0.0}
        for traffic in step_traffic(config, ranks):
            sent[traffic.dimension] += traffic.sent_bytes
        lines.append(
            (
                str(ranks),
                f"{tensor_ranks} x {data_ranks}",
                str(batch.global_batch_size // (data_ranks * batch.micro_batch_size)),
                readable_bytes(sent["tensor"]),
                readable_bytes(sent["data"]),
                f"{time.compute:.3g}",
                f"{time.tensor:.3g}",
                f"{time.exposed_data:.3g} of {time.data:.3g}",
                f"{tokens_per_step(config) / time.total:,.0f}",
                f"{100 * time.compute / time.total:.0f} %",
            )
        )
    return lines, left_out


HEADER = (
    "ranks",
    "TP x DP",
    "accumulated",
    "sent TP",
    "sent DP",
    "compute s",
    "TP s",
    "DP s exposed",
    "tokens/s",
    "of compute",
)


def main(argv: Sequence[str]) -> int:
    """Print a table over numbers of ranks; returns the exit code."""
    args = _parser().parse_args(argv)
    cluster = load_cluster(args.cluster)
    if cluster.speed is None:
        raise ConfigError(
            "speed: the section is missing; docs/scaling.md says what it holds", source=str(args.cluster)
        )
    config = load_config(args.config, args.overrides)
    parallel, speed = config.parallel, cluster.speed
    print(
        f"{args.config}: {tokens_per_step(config):,} tokens a step, ZeRO {parallel.zero_stage}, "
        f"{config.precision}, recompute {config.training.recompute}"
        f"{', sequence parallel' if parallel.sequence_parallel else ''}; {speed.device_tflops:g} TFLOP/s a "
        f"device, {speed.within_node_gb_per_second:g} GB/s within a node, "
        f"{speed.between_nodes_gb_per_second:g} GB/s a rank between nodes of {cluster.ranks_per_node}"
    )
    lines, left_out = rows(config, args.ranks, speed, cluster.ranks_per_node)
    widths = [max(map(len, column)) for column in zip(HEADER, *lines, strict=True)]
    for line in (HEADER, *lines):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if left_out:
        batch = config.batch
        print(
            f"left out: {', '.join(left_out)} ranks; TP does not divide them, or batch.global_batch_size "
            f"{batch.global_batch_size} is no multiple of micro_batch_size {batch.micro_batch_size} x DP"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater scaling",
        description="Estimate traffic and time of a step on more ranks, from stated speeds; runs nothing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--cluster", type=Path, required=True, metavar="FILE", help="cluster configuration with `speed`"
    )
    parser.add_argument(
        "--ranks", type=positive_int, nargs="+", default=list(RANKS), metavar="N", help="default 8 to 1024"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
