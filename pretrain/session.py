"""Putting a pretraining job together on this rank."""

from __future__ import annotations

from pathlib import Path

from pretrain.checkpoint.manifest import TOKENIZER
from pretrain.config import RunConfig
from pretrain.data import eval_batches, open_stream
from pretrain.flops import flops_per_step
from pretrain.loop import Job, claim_run_directory, run
from pretrain.models import build_model
from pretrain.optimizer import build_optimizer
from pretrain.parallel.rng import seed_initialization
from pretrain.parallel.topology import initialize_topology, leave_process_group
from pretrain.parallel.zero import Engine
from pretrain.step import evaluate


def pretrain(config: RunConfig) -> int:
    """Run a pretraining job on this rank; every rank calls it. Returns the exit code."""
    topology = initialize_topology(config.parallel.tensor_model_parallel_size)
    dp_rank, dp_size = topology.data_parallel_rank, topology.data_parallel_size
    with claim_run_directory(config, topology):
        stream = open_stream(config, "train", dp_rank, dp_size)
        validation = eval_batches(config, dp_rank, dp_size) if config.training.eval_interval else None
        seed_initialization(config.seed)
        model = build_model(config)
        engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
        job = Job(
            config=config,
            topology=topology,
            engine=engine,
            stream=stream,
            evaluate=(lambda e: evaluate(e, validation)) if validation else None,
            flops_per_step=flops_per_step(config),
            extra_files={TOKENIZER: tokenizer_of(config)},
        )
        try:
            code = run(job)
        finally:
            stream.close()
    leave_process_group()
    return code


def tokenizer_of(config: RunConfig) -> Path:
    """The tokenizer of a run: `data.tokenizer`, or the one beside the first corpus."""
    return Path(config.data.tokenizer or Path(config.data.corpora[0].path) / TOKENIZER)
