"""Putting a pretraining job together on this rank."""

from __future__ import annotations

from pathlib import Path

from pretrain.config import RunConfig
from pretrain.config.derive import flops_per_step
from pretrain.data import StreamConfig, eval_batches, open_stream
from pretrain.data.ledger import Ledger
from pretrain.data.opening import open_tokenizer
from pretrain.data.sharing import share_steps, share_stream
from pretrain.initial_weights import load_initial_weights
from pretrain.job import Job
from pretrain.loop import run
from pretrain.models import build_model
from pretrain.optimizer import build_optimizer
from pretrain.parallel.batch_broadcast import batch_channel
from pretrain.parallel.rng import seed_initialization
from pretrain.parallel.topology import Topology, initialize_topology, leave_process_group
from pretrain.parallel.zero import Engine
from pretrain.run_directory import claim_run_directory
from pretrain.step import evaluate_unless
from pretrain.stop import StopSignals


def pretrain(config: RunConfig, signals: StopSignals) -> int:
    """Run a pretraining job on this rank; every rank calls it. Returns the exit code."""
    topology = initialize_topology(config.parallel.tensor_model_parallel_size)
    dp_rank, dp_size = topology.data_parallel_rank, topology.data_parallel_size
    with claim_run_directory(config, topology) as claim:
        channel = batch_channel(topology)
        stream = share_stream(lambda: open_stream(config, "train", dp_rank, dp_size), channel)
        validation = None
        if config.training.eval_interval:
            validation = share_steps(lambda: eval_batches(config, dp_rank, dp_size), channel)
        seed_initialization(config.seed)
        model = build_model(config)
        files = tokenizer_of(config)
        load_initial_weights(config, model, topology, next(iter(files.values())))
        engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
        job = Job(
            config=config,
            topology=topology,
            engine=engine,
            stream=stream,
            claim=claim,
            signals=signals,
            evaluate=(lambda e, stop_now: evaluate_unless(stop_now, e, validation)) if validation else None,
            flops_per_step=flops_per_step(config),
            extra_files={name: path.read_bytes() for name, path in files.items()},
            ledger=_ledger(config, topology) if topology.is_main else None,
            extra_metrics=stream.skipped,
        )
        try:
            code = run(job)
        finally:
            stream.close()
    leave_process_group()
    return code


def _ledger(config: RunConfig, topology: Topology) -> Ledger:
    layout = {
        "data_parallel_size": topology.data_parallel_size,
        "tensor_model_parallel_size": topology.tensor_model_parallel_size,
    }
    return Ledger(Path(config.run_dir), StreamConfig.of(config), layout)


def tokenizer_of(config: RunConfig) -> dict[str, Path]:
    """The tokenizer of a run, by its name in a checkpoint: `data.tokenizer`, or that of the first corpus."""
    tokenizer = open_tokenizer(StreamConfig.of(config))
    return {tokenizer.file_name: Path(tokenizer.path)}
