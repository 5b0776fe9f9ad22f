"""Starting DeepSpeed's engine; at stage 3 no device ever holds more than its part of the weights."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed.runtime.config import DeepSpeedConfigError
from pydantic import ValidationError
from torch import nn

from pretrain.config.deepspeed import deepspeed_config, running_stage
from pretrain.config.deepspeed_keys import refused_by_deepspeed
from pretrain.config.errors import ConfigError
from pretrain.config.schema import JobConfig
from pretrain.models.transformer import DTYPES
from pretrain.parallel.model_parallel_unit import ModelParallelUnit
from pretrain.parallel.topology import Topology


def start_deepspeed(
    config: JobConfig, model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology
) -> Any:
    """DeepSpeed's engine.

    Raises:
        ConfigError: it refuses the `deepspeed` section.
    """
    settings = deepspeed_config(config, topology.world_size)
    try:
        if running_stage(config, topology.world_size) == 3:
            _split_weights(model, DTYPES[config.precision], settings, topology)
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, mpu=ModelParallelUnit(topology),
            dist_init_required=None,
        )  # fmt: skip
    except (ValidationError, DeepSpeedConfigError) as error:
        raise ConfigError(refused_by_deepspeed(config.deepspeed, error)) from error
    return engine


def _split_weights(
    model: nn.Module, dtype: torch.dtype, settings: dict[str, Any], topology: Topology
) -> None:
    """Leave this rank's part of each parameter on its device, one parameter after the other.

    `deepspeed.initialize` would move the whole tensor-parallel slice there first. It moves nothing of a model
    that is split already, hence the buffers.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(topology.device)
    deepspeed.init_distributed(verbose=False)  # its settings are checked against the number of ranks
    deepspeed.zero.Init(
        module=model, data_parallel_group=topology.data_parallel_group, config_dict_or_path=settings,
        dtype=dtype, mpu=ModelParallelUnit(topology),
    )  # fmt: skip
