"""Small training runs for tests, executed inside a RankPool: the same global batches at every layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE, SEQ_LENGTH, GLOBAL_BATCH_SIZE, MICRO_BATCH_SIZE = 1000, 32, 8, 2


@dataclass(frozen=True)
class Layout:
    """One way to lay a model over ranks."""

    tp: int = 1
    zero_stage: int = 1
    precision: str = "fp32"


LLAMA = {
    "kind": "gpt",
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "num_query_groups": 2,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
}


def tiny_config(kind: str, layout: Layout, run_dir: str = "unused", **extra: Any) -> Any:
    """A valid RunConfig of a two-layer gpt, bert or llama (a gpt in that style) without dropout."""
    from pretrain.config.load import parse_section
    from pretrain.config.schema import RunConfig

    model: dict[str, Any] = {
        "kind": kind,
        "vocab_size": VOCAB_SIZE,
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 128,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    model |= LLAMA if kind == "llama" else {}
    model |= extra.pop("model", {})
    data = {
        "run_dir": run_dir,
        "seed": 7,
        "model": model,
        "batch": {
            "micro_batch_size": MICRO_BATCH_SIZE,
            "global_batch_size": GLOBAL_BATCH_SIZE,
            "seq_length": SEQ_LENGTH,
        },
        "optimizer": {"lr": 1e-3, "weight_decay": 0.1, "clip_grad": 0.5},
        "parallel": {"tensor_model_parallel_size": layout.tp, "zero_stage": layout.zero_stage},
        "precision": layout.precision,
        "data": {"corpora": [{"name": "none", "path": "none"}]},
        "training": {"train_steps": 20} | extra.pop("training", {}),
    } | extra
    return parse_section(RunConfig, data, "test")


def global_batch(kind: str, step: int) -> list[dict[str, np.ndarray]]:
    """The samples of optimizer step `step`, one micro-batch-shaped dict each; mask counts differ on
    purpose."""
    rng = np.random.default_rng([11, step])
    samples = []
    for index in range(GLOBAL_BATCH_SIZE):
        tokens = rng.integers(6, VOCAB_SIZE, (1, SEQ_LENGTH + 1))
        if kind != "bert":
            mask = np.ones((1, SEQ_LENGTH), np.float32)
            mask[:, : index * 3] = 0.0
            samples.append({"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "loss_mask": mask})
            continue
        real = SEQ_LENGTH - index
        positions = rng.choice(real, size=1 + 2 * index, replace=False)
        positions.sort()
        samples.append(
            {
                "tokens": tokens[:, :-1],
                "token_types": (np.arange(SEQ_LENGTH) > SEQ_LENGTH // 2).astype(np.int64)[None],
                "padding_mask": (np.arange(SEQ_LENGTH) < real)[None],
                "masked_positions": positions,
                "masked_labels": tokens[0, positions],
                "next_sentence_labels": rng.integers(0, 2, 1),
            }
        )
    return samples


def micro_batches(kind: str, step: int, rank: int, size: int) -> list[dict[str, np.ndarray]]:
    """The micro-batches of data-parallel rank `rank` of `size`."""
    samples = global_batch(kind, step)
    per_rank = GLOBAL_BATCH_SIZE // size
    mine = samples[rank * per_rank : (rank + 1) * per_rank]
    return [_stack(mine[i : i + MICRO_BATCH_SIZE]) for i in range(0, per_rank, MICRO_BATCH_SIZE)]


def _stack(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    stacked = {name: np.concatenate([s[name] for s in samples]) for name in samples[0]}
    if "masked_positions" in stacked:
        shifted = [s["masked_positions"] + i * SEQ_LENGTH for i, s in enumerate(samples)]
        stacked["masked_positions"] = np.concatenate(shifted)
    return stacked


class FixedStream:
    """A stream over `global_batch`, with the cursor protocol of the real one."""

    def __init__(self, kind: str, rank: int, size: int) -> None:
        self.kind, self.rank, self.size, self.consumed_samples = kind, rank, size, 0

    def __next__(self) -> list[dict[str, np.ndarray]]:
        step = self.consumed_samples // GLOBAL_BATCH_SIZE
        self.consumed_samples += GLOBAL_BATCH_SIZE
        return micro_batches(self.kind, step, self.rank, self.size)

    @property
    def consumed_tokens(self) -> int:
        return self.consumed_samples * SEQ_LENGTH

    def state_dict(self) -> dict[str, Any]:
        return {"consumed_samples": self.consumed_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.consumed_samples = state["consumed_samples"]

    def epochs(self) -> dict[str, float]:
        return {"fixed": 0.0}


def train(
    kind: str,
    layout: Layout,
    steps: int,
    *,
    load: str | None = None,
    save: str | None = None,
    extra: dict[str, Any] | None = None,
    leave_out: tuple[int, ...] = (),
    discard: tuple[int, ...] = (),
    poison: dict[int, int] | None = None,
) -> dict[str, Any]:
    """Train some steps from the seed (or from checkpoint `load`); losses, norms and the final whole weights.

    With `save`, a checkpoint is written into that run directory at the end. Steps of `leave_out` are not run
    at all, the update of those of `discard` is not accepted, and a NaN gets into the gradients of a rank at
    those of `poison` (step -> rank).
    """
    import torch.distributed as dist

    from pretrain.checkpoint import load_checkpoint, save_checkpoint
    from pretrain.models import build_model
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.rng import seed_initialization, seed_step
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from pretrain.step import train_step

    config = tiny_config(kind, layout, run_dir=save or "unused", **(extra or {}))
    topology = initialize_topology(layout.tp)
    seed_initialization(config.seed)
    model = build_model(config)
    engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    first = int(load_checkpoint(engine, Path(load)).trainer["step"]) if load else 0
    losses, norms, applied = [], [], []
    for step in range(first, first + steps):
        if step in leave_out:
            continue
        factor = math.nan if (poison or {}).get(step) == dist.get_rank() else 1.0
        engine.backward = lambda loss, factor=factor: Engine.backward(engine, loss * factor)
        batches = micro_batches(kind, step, topology.data_parallel_rank, topology.data_parallel_size)
        seed_step(config.seed, step, topology)
        result = train_step(engine, batches, 1e-3, lambda loss, step=step: step not in discard)
        losses.append(result.losses["loss"])
        norms.append(result.grad_norm)
        applied.append(result.applied)
    directory = None
    if save:
        directory = str(save_checkpoint(engine, config, {"step": first + steps}, {}, batches[0]))
    replicated = [
        parameter.detach().float().sum().item()
        for parameter in model.parameters()
        if layout.zero_stage < 3 and not getattr(parameter, "tensor_model_parallel", False)
    ]
    engine.close()
    return {
        "applied": applied,
        "losses": losses,
        "norms": norms,
        "directory": directory,
        "replicated": replicated,
    }


def living_threads() -> int:
    """Threads of this rank after what can be freed is gone."""
    import gc

    gc.collect()
    return len(list(Path("/proc/self/task").iterdir()))


def draws(tp: int, step: int) -> dict[str, Any]:
    """What this rank draws from its two dropout streams at a step, and where it stands."""
    import torch
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    from pretrain.parallel.rng import seed_step
    from pretrain.parallel.topology import initialize_topology

    topology = initialize_topology(tp)
    seed_step(7, step, topology)
    with get_cuda_rng_tracker().fork():
        split = torch.rand(4).tolist()
    return {
        "dp": topology.data_parallel_rank,
        "tp": topology.tensor_model_parallel_rank,
        "split": split,
        "replicated": torch.rand(4).tolist(),
    }
