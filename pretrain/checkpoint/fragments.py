"""Where this rank keeps its share of the fp32 weights and Adam moments, for every ZeRO stage.

ZeRO flattens parameters into a few long fp32 tensors per rank ("flats"). A fragment says which range of which
parameter lies where in which flat. A checkpoint stores flats and fragments; no rank gathers anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.parallel.zero import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("master", *MOMENTS)


@dataclass(frozen=True, slots=True)
class Fragment:
    """`numel` elements of a parameter's flattened tensor-parallel slice, starting at `start`."""

    name: str
    start: int
    flat: int
    """Index of the flat that holds them."""
    flat_start: int
    numel: int


class RankState:
    """This rank's flats and fragments.

    Attributes:
        flats: 1-D fp32 tensors, the master weights; for parameters that are not trained a copy.
        fragments: What they hold; those of parameters that are not trained come last.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parameters: dict[str, Any] = dict(engine.model.named_parameters())
        self._trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        optimizer = engine.deepspeed.optimizer
        self._inner: torch.optim.Optimizer = optimizer if engine.zero_stage == 0 else optimizer.optimizer
        if engine.zero_stage == 0:
            self._keys = list(self._trained.values())
            self.fragments = list(self._whole_fragments())
        elif engine.zero_stage == 3:
            self._keys = list(optimizer.fp32_partitioned_groups_flat)
            self.fragments = list(self._stage3_fragments())
        else:
            bf16_wrapper = hasattr(optimizer, "fp32_groups_flat_partition")
            self._keys = list(
                optimizer.fp32_groups_flat_partition
                if bf16_wrapper
                else optimizer.single_partition_of_fp32_groups
            )
            self.fragments = list(self._mapped_fragments())
        self.flats = [key.data.view(-1) for key in self._keys]
        self._add_frozen()

    def is_trained(self, fragment: Fragment) -> bool:
        """Whether there are moments for it."""
        return fragment.flat < len(self._keys)

    def moments(self, kind: str) -> dict[int, Tensor]:
        """One moment by flat index; empty before the first update."""
        states = enumerate(self._inner.state.get(key, {}) for key in self._keys)
        return {index: state[kind].view(-1) for index, state in states if kind in state}

    def optimizer_steps(self) -> int:
        """Updates that the optimizer applied (skipped ones not counted)."""
        steps = [int(state["step"]) for key in self._keys if (state := self._inner.state.get(key))]
        return max(steps, default=0)

    def prepare_moments(self, optimizer_steps: int) -> None:
        """Make zero moments and the step counter exist, as they do after `optimizer_steps` updates."""
        for key in self._keys:
            state: dict[str, Any] = self._inner.state[key]
            state["step"] = torch.tensor(float(optimizer_steps), dtype=torch.float32, device=key.device)
            for kind in MOMENTS:
                state[kind] = torch.zeros_like(key.data)

    def view(self, fragment: Fragment, kind: str) -> Tensor:
        """The elements of a fragment, writable: master weights or a moment."""
        flat: Tensor = (
            self.flats[fragment.flat]
            if kind == "master"
            else self._inner.state[self._keys[fragment.flat]][kind].view(-1)
        )
        return flat.narrow(0, fragment.flat_start, fragment.numel)

    def refresh_model(self, name: str, shard: Tensor) -> None:
        """Give the model's own (possibly low-precision) copy of a parameter the values in `shard`."""
        parameter = self._parameters[name]
        if hasattr(parameter, "ds_tensor"):
            part = parameter.ds_tensor.numel()
            start = self._engine.topology.data_parallel_rank * part
            mine = shard.view(-1)[start : start + part]
            parameter.ds_tensor.data.view(-1)[: mine.numel()].copy_(mine)
        if parameter.data.numel() == shard.numel():
            parameter.data.copy_(shard)

    def _add_frozen(self) -> None:
        """Parameters that no optimizer knows: the model's own values, each a flat of its own.

        Below stage 3 all data-parallel ranks hold them, and each answers for every so manieth.
        """
        topology = self._engine.topology
        rank, size = topology.data_parallel_rank, topology.data_parallel_size
        frozen = [(name, p) for name, p in self._parameters.items() if name not in self._trained]
        for number, (name, parameter) in enumerate(frozen):
            values, start, numel = parameter.data, 0, parameter.numel()
            if self._engine.zero_stage == 3:
                values = parameter.ds_tensor.data
                start = rank * values.numel()
                numel = min(values.numel(), max(0, parameter.ds_numel - start))
            elif self._engine.zero_stage and number % size != rank:
                continue
            if numel:
                self.fragments.append(Fragment(name, start, len(self.flats), 0, numel))
                self.flats.append(values.float().view(-1))

    def _whole_fragments(self) -> Iterator[Fragment]:
        """Stage 0: parameters are whole on every rank."""
        for index, (name, parameter) in enumerate(self._trained.items()):
            yield Fragment(name, 0, index, 0, parameter.numel())

    def _mapped_fragments(self) -> Iterator[Fragment]:
        """Stages 1 and 2: DeepSpeed maps low-precision parameters to ranges of its flat partitions."""
        for name, parameter in self._trained.items():
            mapping: Any = parameter._hp_mapping
            if mapping is not None:
                low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Fragment(name, low.start, mapping.param_group_index, high.start, high.numel)

    def _stage3_fragments(self) -> Iterator[Fragment]:
        """Stage 3: every parameter is cut into equal parts, one a rank, the last padded."""
        optimizer = self._engine.deepspeed.optimizer
        rank = self._engine.topology.data_parallel_rank
        for name, parameter in self._trained.items():
            flat, flat_start, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
            numel = min(part, max(0, parameter.ds_numel - rank * part))
            if numel:
                yield Fragment(name, rank * part, flat, flat_start, numel)
