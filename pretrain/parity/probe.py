"""What runs on the ranks: some optimizer steps at a layout, and the same steps in plain torch on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.checkpoint import parameter_layouts
from pretrain.checkpoint.fragments import RankState
from pretrain.config import RunConfig
from pretrain.models import build_model
from pretrain.optimizer import build_optimizer
from pretrain.parallel.rng import seed_initialization, seed_step
from pretrain.parallel.topology import Topology, initialize_topology
from pretrain.parallel.zero import Engine
from pretrain.parity.batches import micro_batches
from pretrain.step import to_device, train_step

LR = 1e-3


@dataclass(slots=True, kw_only=True)
class Trace:
    """What some optimizer steps left behind."""

    losses: list[float]
    norms: list[float]
    gradients: dict[str, Tensor]
    """Of the first step, after clipping: whole parameters by name, fp32."""
    weights: dict[str, Tensor]
    """After the last step."""
    start: dict[str, Tensor] = field(default_factory=dict)
    """Before the first one; the reference has it."""


def trace_layout(config: RunConfig, steps: int) -> Trace | None:
    """Train on every rank at the configuration's layout; the main rank returns what came out.

    Gradients are read from Adam's first moment, (1 - beta1) * g after one step, which exists in one form at
    every ZeRO stage; the weights are the optimizer's fp32 ones.
    """
    topology = initialize_topology(config.parallel.tensor_model_parallel_size)
    model = fresh_model(config, topology)
    engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    losses, norms, moments = [], [], {}
    for step in range(steps):
        batches = micro_batches(config, step, topology.data_parallel_rank, topology.data_parallel_size)
        seed_step(config.seed, step, topology)
        result = train_step(engine, batches, lr=LR)
        losses.append(result.losses["loss"])
        norms.append(result.grad_norm)
        if step == 0:
            moments = gather_whole(engine, "exp_avg")
    weights = gather_whole(engine, "master")
    engine.close()
    if not topology.is_main:
        return None
    gradients = {name: moment / (1.0 - config.optimizer.beta1) for name, moment in moments.items()}
    return Trace(losses=losses, norms=norms, gradients=gradients, weights=weights)


def trace_reference(config: RunConfig, steps: int) -> Trace:
    """The same steps on one rank in fp32 with torch alone: no DeepSpeed, no partition, one batch a step."""
    topology = initialize_topology(1)
    model: Any = fresh_model(config, topology)
    optimizer = build_optimizer(model, config.optimizer)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, norms, gradients = [], [], {}
    for step in range(steps):
        batch = to_device(micro_batches(config, step, 0, 1)[0], topology.device)
        sums, counts = model(**batch), model.target_counts(batch)
        loss = sum(weight * sums[name] / counts[name] for name, weight in model.loss_weights().items())
        loss.backward()
        limit = config.optimizer.clip_grad or float("inf")
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), limit)))
        losses.append(float(loss.detach()))
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        for group in optimizer.param_groups:
            group["lr"] = LR
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Trace(losses=losses, norms=norms, gradients=gradients, weights=weights, start=start)


@torch.no_grad()
def fresh_model(config: RunConfig, topology: Topology) -> nn.Module:
    """The model with its initial weights, and noise on biases and norms: zeros and ones would hide errors.

    All are rounded to bf16, so that every precision starts from the same numbers.
    """
    seed_initialization(config.seed)
    model = build_model(config)
    layouts = parameter_layouts(model, topology.tensor_model_parallel_size)
    generator = torch.Generator().manual_seed(config.seed)
    for name, parameter in model.named_parameters():
        layout = layouts[name]
        if len(layout.shape) == 1:
            noise = 0.05 * torch.randn(layout.shape, generator=generator)
            rank, size = topology.tensor_model_parallel_rank, topology.tensor_model_parallel_size
            parameter.add_(layout.split(noise, rank, size))
        parameter.copy_(parameter.bfloat16())
    return model


def gather_whole(engine: Engine, kind: str) -> dict[str, Tensor]:
    """Whole fp32 parameters or moments on the main rank, from every rank's fragments; {} on the others."""
    topology, state = engine.topology, RankState(engine)
    mine = [(f.name, f.start, state.view(f, kind).detach().cpu().clone()) for f in state.fragments]
    everyone: list[Any] | None = [None] * topology.world_size if topology.is_main else None
    dist.gather_object((topology.tensor_model_parallel_rank, mine), everyone)
    if everyone is None:
        return {}
    size = topology.tensor_model_parallel_size
    whole = {}
    for name, layout in parameter_layouts(engine.model, size).items():
        shards = [torch.full(layout.shard_shape(size), float("nan")) for _ in range(size)]
        for tp_rank, fragments in everyone:
            for fragment, start, values in fragments:
                if fragment == name:
                    shards[tp_rank].view(-1)[start : start + values.numel()] = values
        whole[name] = layout.merge(shards)
    return whole
