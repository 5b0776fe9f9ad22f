"""Headwater: its model without an engine, and the whole loop with its engine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training.limits import product_precision
from benchmarks.training.peers import plain_loop
from benchmarks.training.work import ADAMW, CLIP_GRAD, Rounds, Work, batch
from pretrain.config.derive import padded_vocab_size
from pretrain.config.load import parse_section
from pretrain.config.schema import RunConfig
from pretrain.job import Job
from pretrain.loop import run
from pretrain.models import build_model
from pretrain.models.transformer import gpt_block_spec, transformer_config
from pretrain.optimizer import build_optimizer
from pretrain.parallel.device import DTYPES
from pretrain.parallel.products import multiply_in_fp32
from pretrain.parallel.rng import seed_initialization
from pretrain.parallel.topology import initialize_topology
from pretrain.parallel.zero import Engine
from pretrain.run_directory import claim_run_directory
from pretrain.stop import StopSignals

LLAMA = {
    "position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
}  # fmt: skip


def bare_model(work: Work, rounds: Rounds) -> None:
    """Our model in the same plain loop as the peers."""
    config = run_config(work, "unused", tp=1, zero_stage=1, ranks=1)
    initialize_topology(1)
    seed_initialization(config.seed)
    model: Any = build_model(config).float()  # the loop makes its own bf16 weights
    multiply_in_fp32(DTYPES[work.precision])
    weights = model.loss_weights()
    if work.update_only:
        leave_update_only(model)

    def loss_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        counts = model.target_counts(tensors)
        sums = model(**tensors)
        return sum(weights[name] * sums[name] / counts[name] for name in weights)  # type: ignore[return-value]

    plain_loop(work, rounds, model, loss_of, work.precision)


def leave_update_only(model: nn.Module) -> None:
    """Put a sum over all weights in place of the model's summed loss; every element gets another gradient."""

    def forward(**_batch: Tensor) -> dict[str, Tensor]:
        squares = [parameter.float().square().sum() for parameter in model.parameters()]
        return {"lm_loss": torch.stack(squares).sum()}

    model.forward = forward


def megatron_core(work: Work, rounds: Rounds) -> None:
    """megatron-core's GPTModel with its own loss; attention is ours, its own runs on CUDA only."""
    from megatron.core.models.gpt import GPTModel

    precision = product_precision(work)
    run_settings = run_config(work, "unused", tp=1, zero_stage=1, ranks=1)
    initialize_topology(1)
    model_settings: Any = run_settings.model
    config = transformer_config(
        model_settings, precision=precision, tensor_model_parallel_size=1, recompute="none",
        activation_func=partial(F.gelu, approximate="tanh"),
    )  # fmt: skip
    model = GPTModel(
        config, gpt_block_spec(config), vocab_size=padded_vocab_size(model_settings),
        max_sequence_length=work.seq_length, share_embeddings_and_output_weights=True,
    ).float()  # fmt: skip
    positions = torch.arange(work.seq_length).expand(work.batch_size, -1)

    def loss_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        losses: torch.Tensor = model(tensors["tokens"], positions, None, labels=tensors["labels"])
        return losses.mean()

    plain_loop(work, rounds, model, loss_of, precision)


def whole_loop(work: Work, rounds: Rounds, tp: int, zero_stage: int) -> None:
    """`pretrain.loop.run` on synthetic batches: engine, logging, metrics, everything but the reading."""
    topology = initialize_topology(tp)
    with tempfile.TemporaryDirectory() as directory:
        config = run_config(work, directory, tp, zero_stage, topology.world_size)
        seed_initialization(config.seed)
        model = build_model(config)
        if work.update_only:
            leave_update_only(model)
        engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
        share = slice_of(work, topology.data_parallel_rank, topology.data_parallel_size)
        stream = PacedStream(work, rounds, share)
        with claim_run_directory(config, topology) as claim:
            job = Job(
                config=config, topology=topology, engine=engine, stream=stream, claim=claim,
                signals=StopSignals(),
            )  # fmt: skip
            run(job)


def run_config(work: Work, run_dir: str, tp: int, zero_stage: int, ranks: int) -> RunConfig:
    """The run configuration of a piece of work; the whole batch is one micro-batch per data-parallel rank."""
    beta1, beta2 = ADAMW["betas"]  # type: ignore[misc]
    data = {
        "run_dir": run_dir,
        "model": {
            "kind": "bert" if work.kind == "bert" else "gpt", "vocab_size": work.vocab_size,
            "num_layers": work.num_layers, "hidden_size": work.hidden_size,
            "ffn_hidden_size": work.ffn_hidden_size,
            "num_attention_heads": work.num_attention_heads, "max_position_embeddings": work.seq_length,
            "hidden_dropout": 0.0, "attention_dropout": 0.0,
            **(LLAMA if work.kind == "llama" else {}),
        },
        "batch": {
            "micro_batch_size": work.batch_size * tp // ranks, "global_batch_size": work.batch_size,
            "seq_length": work.seq_length,
        },
        "optimizer": {
            "lr": ADAMW["lr"], "beta1": beta1, "beta2": beta2, "eps": ADAMW["eps"],
            "weight_decay": ADAMW["weight_decay"], "clip_grad": CLIP_GRAD,
        },
        "schedule": {"kind": "constant"},
        "parallel": {"tensor_model_parallel_size": tp, "zero_stage": zero_stage},
        "precision": work.precision,
        "data": {"corpora": [{"name": "synthetic", "path": "none"}]},
        "checkpoint": {"save_interval": 10**9},
        # Between its rounds it waits for the others, which is no hang.
        "training": {"train_steps": 10**9, "hang_timeout_seconds": 0},
    }  # fmt: skip
    return parse_section(RunConfig, data, "benchmark")


def slice_of(work: Work, dp_rank: int, dp_size: int) -> Callable[[dict[str, np.ndarray]], Any]:
    """What a data-parallel rank takes from a whole batch."""
    rows = work.batch_size // dp_size
    first = dp_rank * rows

    def take(whole: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if dp_size == 1:
            return whole
        part = {n: a[first : first + rows] for n, a in whole.items() if not n.startswith("masked_")}
        if "masked_positions" in whole:
            positions = whole["masked_positions"] - first * work.seq_length
            mine = (positions >= 0) & (positions < rows * work.seq_length)
            part["masked_positions"], part["masked_labels"] = positions[mine], whole["masked_labels"][mine]
        return part

    return take


class PacedStream:
    """A stream of synthetic batches that waits for the driver between rounds."""

    def __init__(self, work: Work, rounds: Rounds, share: Callable[[dict[str, np.ndarray]], Any]) -> None:
        self._work, self._rounds, self._share = work, rounds, share
        self.consumed_samples = 0

    def __next__(self) -> list[dict[str, np.ndarray]]:
        if not self._rounds.another():
            os._exit(0)  # measured; a checkpoint at the end would only take time
        step = self.consumed_samples // self._work.batch_size
        self.consumed_samples += self._work.batch_size
        return [self._share(batch(self._work, step))]

    @property
    def consumed_tokens(self) -> int:
        """Tokens so far."""
        return self.consumed_samples * self._work.seq_length

    def state_dict(self) -> dict[str, Any]:
        """The cursor; never used."""
        return {"consumed_samples": self.consumed_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind a cursor; never used."""
        self.consumed_samples = state["consumed_samples"]

    def epochs(self) -> dict[str, float]:
        """Passes over the corpus."""
        return {"synthetic": 0.0}
