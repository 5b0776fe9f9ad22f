"""A check inside a run: what must be equal on several ranks is, row-parallel layers add up what they must.

Ranks that hold the same parameter must hold the same bits: a difference means that a reduction is missing or
that memory went bad, and the loss does not show it for a long time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.checkpoint.fragments import MOMENTS, RankState
from pretrain.config import exit_codes
from pretrain.parallel.zero import Engine
from pretrain.step import MicroBatch, to_device

_CHUNK = 2**22
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Of a sum, relative to its largest element: a few units in the last place."""

Entry = tuple[str, str, Tensor]
"""Parameter, what of it (weight, master weight, a moment), values."""


class ReplicaError(Exception):
    """Ranks do not train one model any more; the message names parameter, ranks and hosts."""

    exit_code = exit_codes.DIVERGED


@torch.no_grad()
def check_replicas(engine: Engine, micro_batch: MicroBatch, step: int) -> None:
    """Check this run; all ranks call it together, between optimizer steps.

    Args:
        engine: The running engine.
        micro_batch: Any of this rank; one forward pass reads it.
        step: For the message.

    Raises:
        ReplicaError: On every rank.
    """
    topology = engine.topology
    state, found = RankState(engine), []
    for kind, group, entries in (
        ("tensor-parallel", topology.tensor_model_parallel_group, _replicated_over_tp(engine, state)),
        ("data-parallel", topology.data_parallel_group, _replicated_over_dp(engine, state)),
    ):
        found += [
            f"{text} between {kind} ranks" for text in _differences(group, list(entries), topology.device)
        ]
    found += _row_parallel_faults(engine, micro_batch)
    everyone: list[Any] = [None] * topology.world_size
    dist.all_gather_object(everyone, found)
    told = list(dict.fromkeys(text for rank in everyone for text in rank))
    if told:
        more = f" ({len(told) - 1} more differences)" if len(told) > 1 else ""
        raise ReplicaError(
            f"step {step}: {told[0]}{more}; the ranks do not train one model any more. Stopped without "
            "saving; `headwater parity --config ...` tells whether the layout or the machine is at fault"
        )


def _replicated_over_tp(engine: Engine, state: RankState) -> Iterator[Entry]:
    """Parameters that tensor parallelism does not split; at ZeRO 3 this rank's part of them."""
    whole = {
        name: parameter
        for name, parameter in engine.model.named_parameters()
        if not getattr(parameter, "tensor_model_parallel", False)
    }
    for name, parameter in whole.items():
        yield name, "weight", getattr(parameter, "ds_tensor", parameter)
    for name, kind, values in _states(state):
        if name in whole:
            yield name, kind, values


def _replicated_over_dp(engine: Engine, state: RankState) -> Iterator[Entry]:
    """Weights below ZeRO 3, and at ZeRO 0 the moments too."""
    if engine.zero_stage < 3:
        for name, parameter in engine.model.named_parameters():
            yield name, "weight", parameter
    if engine.zero_stage == 0:
        yield from _states(state)


def _states(state: RankState) -> Iterator[Entry]:
    moments = {kind: state.moments(kind) for kind in MOMENTS}
    for fragment in state.fragments:
        yield fragment.name, "master weight", state.view(fragment, "master")
        for kind in MOMENTS:
            if fragment.flat in moments[kind]:  # frozen parameters have none, and none have any at first
                yield fragment.name, kind, state.view(fragment, kind)


def _differences(group: dist.ProcessGroup, entries: list[Entry], device: torch.device) -> list[str]:
    """One sentence for each entry whose bits are not those of the group's first rank.

    Offloaded weights and states lie on the host; the group's backend may want its device.
    """
    ranks = dist.get_process_group_ranks(group)
    if len(ranks) == 1 or not entries:  # at ZeRO 3 data ranks hold nothing alike
        return []
    mine = torch.stack([checksum(values).to(device) for _, _, values in entries])
    everyone = [torch.empty_like(mine) for _ in ranks]
    dist.all_gather(everyone, mine, group=group)
    hosts: list[Any] = [None] * len(ranks)
    dist.all_gather_object(hosts, socket.gethostname(), group=group)
    texts = []
    for index, (name, what, _) in enumerate(entries):
        others = [i for i, sums in enumerate(everyone) if not torch.equal(sums[index], everyone[0][index])]
        if others:
            listed = ", ".join(f"{ranks[i]} ({hosts[i]})" for i in others)
            texts.append(f"{what} of {name} differs from rank {ranks[0]} ({hosts[0]}) on {listed}")
    return texts


def checksum(values: Tensor) -> Tensor:
    """Two int64 sums over the bits, one weighted by position; exact, so the order of addition is free."""
    bits = values.detach().contiguous().view(-1).view(_BITS[values.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=bits.device)
    for number, part in enumerate(torch.split(bits, _CHUNK)):
        wide = part.to(torch.int64)
        places = torch.arange(1, wide.numel() + 1, device=bits.device) + number * _CHUNK
        sums += torch.stack([wide.sum(), (wide * places).sum()])  # wraps around, the same everywhere
    return sums


def _row_parallel_faults(engine: Engine, micro_batch: MicroBatch) -> list[str]:
    """Compare every row-parallel layer with the sum of its slices, in one forward pass without dropout.

    Replicas cannot show a bias that every rank adds: it is equally wrong on all of them.
    """
    if engine.topology.tensor_model_parallel_size == 1:
        return []
    faults: list[str] = []
    layers = [(n, m) for n, m in engine.model.named_modules() if hasattr(m, "input_is_parallel")]
    for name, layer in layers:
        layer.forward = partial(_checked, engine, name, layer, layer.forward, faults)
    engine.eval_mode()
    try:
        engine.forward(to_device(micro_batch, engine.topology.device))
    finally:
        engine.train_mode()
        for _, layer in layers:
            del layer.forward  # the class's own again
    return faults


def _checked(  # noqa: PLR0913 (a forward with what surrounds it)
    engine: Engine, name: str, layer: Any, forward: Callable[..., Any], faults: list[str], hidden: Tensor
) -> Any:
    output, bias = forward(hidden)
    topology = engine.topology
    want = torch.matmul(hidden.float(), layer.weight.float().t())
    dist.all_reduce(want, group=topology.tensor_model_parallel_group)
    if engine.config.parallel.sequence_parallel:
        want = want.chunk(topology.tensor_model_parallel_size)[topology.tensor_model_parallel_rank]
    if layer.bias is not None and not layer.skip_bias_add:
        want = want + layer.bias.float()
    apart = float((output.float() - want).abs().max())
    if not apart <= _ROUNDING[output.dtype] * float(want.abs().max()):
        faults.append(
            f"{name} is {apart:.1e} away from the sum of its slices, on tensor-parallel ranks "
            f"{dist.get_process_group_ranks(topology.tensor_model_parallel_group)} ({socket.gethostname()})"
        )
    return output, bias
