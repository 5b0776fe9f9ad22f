"""The DeepSpeed engine: ZeRO over the data-parallel ranks of a tensor-parallel model.

The traps of deepspeed 0.19.8 with megatron-core 0.16.1 are handled here and in the modules used here:
DeepSpeed divides gradients by the data-parallel size and losses by the accumulation steps, while our losses
are already divided by the global number of targets; it computes no gradient norm at stage 0 in fp32.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import deepspeed
import torch
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.config import DeepSpeedConfigError
from deepspeed.runtime.zero import stage_1_and_2
from pydantic import ValidationError
from torch import Tensor, nn

from pretrain.config.deepspeed import deepspeed_config, running_stage
from pretrain.config.deepspeed_keys import refused_by_deepspeed
from pretrain.config.errors import ConfigError
from pretrain.config.schema import JobConfig
from pretrain.parallel.device import DTYPES
from pretrain.parallel.discarded_updates import forget_gradients, reported_overflow
from pretrain.parallel.flat_gradients import FlatGradients
from pretrain.parallel.gradient_norm import global_norm
from pretrain.parallel.loss_scale import LossScale
from pretrain.parallel.model_parallel_unit import ModelParallelUnit
from pretrain.parallel.partial_gradients import reduce_partial_gradients
from pretrain.parallel.pending_reads import PendingReads
from pretrain.parallel.products import multiply_in_fp32
from pretrain.parallel.rng import seed_step
from pretrain.parallel.topology import Topology
from pretrain.parallel.weight_gather import gather_partitions


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What an optimizer step did."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping."""
    applied: bool
    """False when DeepSpeed skipped the update because the gradient was not finite."""
    overflow: bool = False
    """The update was skipped because fp16 gradients overflowed; the loss scale is lower now."""


class Engine:
    """A model on its ranks with its optimizer: forward, backward, step.

    Attributes:
        pending_reads: Of weights and moments, by other threads; updates and loads wait for them.
    """

    def __init__(
        self, config: JobConfig, model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology
    ) -> None:
        _quiet_deepspeed()
        if topology.device.type == "cpu":
            _adapt_to_cpu()
            multiply_in_fp32(DTYPES[config.precision])
        self.config = config
        self.topology = topology
        self.model = model
        self.zero_stage = running_stage(config, topology.world_size)
        self.pending_reads = PendingReads()
        self._at_boundary = False
        self._micro_batches_left = 0
        if config.parallel.sequence_parallel:
            reduce_partial_gradients(model, topology)
        self.deepspeed: Any = _start(config, model, optimizer, topology)
        alone = topology.data_parallel_size == 1
        self._flat_gradients = _flat_gradients(self.deepspeed, topology)
        self._summed_here = bool(self._flat_gradients) or (alone and self.zero_stage == 0)
        if self._summed_here:
            self.deepspeed.enable_backward_allreduce = False
        seed_step(config.seed, 0, topology)  # an evaluation before the first step enters the streams too
        self.loss_scale = LossScale(self.deepspeed.optimizer, config.precision)
        if self.deepspeed.dp_world_size != topology.data_parallel_size:
            raise RuntimeError(
                f"DeepSpeed sees {self.deepspeed.dp_world_size} data-parallel ranks, "
                f"expected {topology.data_parallel_size}"
            )

    def begin_step(self, micro_batches: int) -> None:
        """Say how many micro-batches the next optimizer step has; the number may differ from step to step."""
        self._micro_batches_left = micro_batches

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run the model on one micro-batch; returns summed losses."""
        if self.model.training:
            # Told rather than counted: DeepSpeed's own count takes the configured batch size for all steps.
            self.deepspeed.set_gradient_accumulation_boundary(self._micro_batches_left == 1)
        outputs: dict[str, Tensor] = self.deepspeed(**batch)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a loss that is this rank's share of the global mean.

        Where DeepSpeed averages over data-parallel ranks, multiplying by their number makes it the sum that
        the share needs; where gradients are summed here (`_summed_here`), nothing is to be undone.
        """
        averaged_over = 1 if self._summed_here else self.topology.data_parallel_size
        if self._micro_batches_left == 1 and self._flat_gradients:
            self._flat_gradients.begin_last()
        self.deepspeed.backward(loss * averaged_over, scale_wrt_gas=False)
        self._micro_batches_left -= 1
        self._at_boundary = self._micro_batches_left == 0
        if self._at_boundary and self._flat_gradients:
            self._flat_gradients.finish()
        if not self._at_boundary:
            self.deepspeed.step()  # counts the micro-batch; no update

    def step(self, lr: float) -> StepOutcome:
        """Clip and update after the last micro-batch of an optimizer step.

        Args:
            lr: Learning rate of this update; a parameter group with `lr_scale` takes so much of it.
        """
        if not self._at_boundary:
            raise RuntimeError("step() before the last micro-batch of the optimizer step")
        self.pending_reads.wait()
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        can_lower = self.loss_scale.can_lower()
        if self.zero_stage == 0:
            grad_norm = self._clip_whole_gradients()
            if not math.isfinite(grad_norm):
                return replace(self.discard(), grad_norm=grad_norm)
            self.deepspeed.step()
        else:
            self.deepspeed.step()
            grad_norm = float(self.deepspeed.get_global_grad_norm())
        applied = bool(self.deepspeed.was_step_applied())
        if not applied:
            forget_gradients(self.deepspeed.optimizer)
        overflow = can_lower and not applied
        self.loss_scale.overflows += overflow
        return StepOutcome(grad_norm=grad_norm, applied=applied, overflow=overflow)

    def discard(self) -> StepOutcome:
        """End an optimizer step after its last micro-batch without an update; gradients are dropped."""
        if not self._at_boundary:
            raise RuntimeError("discard() before the last micro-batch of the optimizer step")
        self.pending_reads.wait()
        if self.zero_stage == 0:
            self.deepspeed.zero_grad()
            self.deepspeed.step()  # AdamW leaves parameters without a gradient alone
        else:
            with reported_overflow(self.deepspeed.optimizer):
                self.deepspeed.step()
            forget_gradients(self.deepspeed.optimizer)
        return StepOutcome(grad_norm=math.nan, applied=False)

    def eval_mode(self) -> None:
        """Dropout off."""
        self.deepspeed.eval()

    def train_mode(self) -> None:
        """Dropout on."""
        self.deepspeed.train()

    def close(self) -> None:
        """Drop DeepSpeed's hooks and buffers, so that another engine can follow in this process."""
        self.deepspeed.destroy()
        # DeepSpeed caches its view of the process groups in module globals; a later engine must look again.
        deepspeed.comm.comm.cdb = None
        deepspeed.utils.groups._WORLD_GROUP = None
        deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
        deepspeed.utils.groups.mpu = None
        _forget_models()

    def _clip_whole_gradients(self) -> float:
        """Clip unpartitioned gradients (stage 0) by their global norm."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # no loss reached it; ZeRO counts that as zero, too
                parameter.grad = torch.zeros_like(parameter)
        gradients = [(parameter, parameter.grad) for parameter in trained if parameter.grad is not None]
        norm = global_norm(gradients, self.topology)
        limit = self.config.optimizer.clip_grad
        if limit and norm > limit:
            torch._foreach_mul_([gradient for _, gradient in gradients], limit / (norm + 1e-6))
        return norm


def _start(config: JobConfig, model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology) -> Any:
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


def _flat_gradients(engine: Any, topology: Topology) -> FlatGradients | None:
    """Those of DeepSpeed's bf16 optimizer, to be summed by us; None where another type is to be summed."""
    if not isinstance(engine.optimizer, bf16_optimizer.BF16_Optimizer):
        return None
    if topology.data_parallel_size > 1 and engine.communication_data_type != torch.float32:
        return None
    early = _sums_early(topology.device)
    parameters = engine.module.parameters()
    return FlatGradients(engine.optimizer, parameters, topology.data_parallel_group, early=early)


def _sums_early(device: torch.device) -> bool:
    """Beside the backward pass; on CPU the sums would take its cores (benchmarks/LOG.md)."""
    return device.type != "cpu"


def _forget_models() -> None:
    """Empty what stage 3 keeps of models in module globals: with them go the groups, and gloo's threads.

    45 threads an engine stayed on one rank, all waking up in vain.
    """
    deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK.clear()
    coordinator = deepspeed.runtime.zero.partitioned_param_coordinator.PartitionedParameterCoordinator
    cached = coordinator._PartitionedParameterCoordinator__params_to_release  # decorated twice
    for cell in cached.__closure__ or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


def _adapt_to_cpu() -> None:
    # The shared-memory reducer would be compiled at first use, a minute; gloo reduces as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Without AVX512-FP16 DeepSpeed refuses fp16; `multiply_in_fp32` makes it as fast as fp32.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    for module in (bf16_optimizer, stage_1_and_2):
        module.all_gather_dp_groups = gather_partitions


def _quiet_deepspeed() -> None:
    """DeepSpeed logs every step of its set-up; warnings and errors stay.

    Its bf16 optimizer prints memory and collects garbage between the steps: that goes to the log, too.
    """
    log = logging.getLogger("DeepSpeed")
    log.setLevel(logging.WARNING)
    bf16_optimizer.see_memory_usage = lambda message, force=False: log.info(message)
