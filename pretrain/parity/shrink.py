"""A run's model made small, in the same style: the same code paths, in seconds on a CPU."""

from __future__ import annotations

from typing import Any

from pretrain.config import RunConfig
from pretrain.config.load import parse_section
from pretrain.parity.layouts import SAMPLES

SMALL: dict[str, Any] = {
    "vocab_size": 250,
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
SEQ_LENGTH = 32
EPS = 1e-6
"""Of AdamW. Some gradients are zero up to rounding (a key's bias shifts all scores of a query alike), and a
small eps would blow that rounding up to whole updates."""


def shrunk(config: RunConfig) -> RunConfig:
    """Two narrow layers of the run's architecture, without dropout, at one rank's layout."""
    model = config.model.model_dump() | SMALL
    if model.get("num_query_groups"):
        grouped = config.model.num_attention_heads != model["num_query_groups"]
        model["num_query_groups"] = 4 if grouped else 8
    optimizer = config.optimizer.model_dump() | {"lr": 1e-3, "min_lr": 0.0, "eps": EPS}
    data = {
        "run_dir": config.run_dir,
        "seed": config.seed,
        "model": model,
        "batch": {"micro_batch_size": SAMPLES, "global_batch_size": SAMPLES, "seq_length": SEQ_LENGTH},
        "optimizer": optimizer,
        "parallel": {"zero_stage": 0},
        "precision": "fp32",
        "data": {"corpora": [{"name": "none", "path": "none"}]},
        "training": {"train_steps": 1000},
    }
    return parse_section(RunConfig, data, "parity")
