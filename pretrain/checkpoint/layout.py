"""How a parameter is split over tensor-parallel ranks, and how to merge and split it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ParameterLayout:
    """Shape of a whole parameter and the dimension that tensor parallelism splits."""

    shape: tuple[int, ...]
    tp_dim: int | None
    """Split dimension; None = every tensor-parallel rank holds the whole parameter."""
    tp_stride: int = 1
    """Separate blocks along tp_dim that are each split (2 for gate and up of a gated MLP)."""

    def shard_shape(self, size: int) -> tuple[int, ...]:
        """Shape of one rank's slice at tensor-parallel size `size`."""
        if self.tp_dim is None:
            return self.shape
        return tuple(n // size if i == self.tp_dim else n for i, n in enumerate(self.shape))

    def merge(self, shards: Sequence[Tensor]) -> Tensor:
        """The whole parameter from the slices of all tensor-parallel ranks, in rank order."""
        if self.tp_dim is None or len(shards) == 1:
            return shards[0]
        blocks = [torch.chunk(shard, self.tp_stride, self.tp_dim) for shard in shards]
        return torch.cat([part[i] for i in range(self.tp_stride) for part in blocks], self.tp_dim)

    def split(self, full: Tensor, rank: int, size: int) -> Tensor:
        """The slice of tensor-parallel rank `rank` of `size`; contiguous."""
        if self.tp_dim is None or size == 1:
            return full.contiguous()
        blocks = torch.chunk(full, self.tp_stride, self.tp_dim)
        return torch.cat([torch.chunk(block, size, self.tp_dim)[rank] for block in blocks], self.tp_dim)

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ParameterLayout:
        """From the manifest."""
        return cls(tuple(value["shape"]), value["tp_dim"], value["tp_stride"])


def parameter_layouts(model: nn.Module, tensor_model_parallel_size: int) -> dict[str, ParameterLayout]:
    """Layout of every parameter of a live model, from megatron-core's attributes; also under ZeRO 3."""
    layouts = {}
    parameter: Any
    for name, parameter in model.named_parameters():
        shape = list(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO 3 empties `shape`
        tp_dim = None
        if getattr(parameter, "tensor_model_parallel", False):
            tp_dim = int(parameter.partition_dim)
            shape[tp_dim] *= tensor_model_parallel_size
        stride = int(getattr(parameter, "partition_stride", 1)) if tp_dim is not None else 1
        layouts[name] = ParameterLayout(tuple(shape), tp_dim, stride)
    return layouts
