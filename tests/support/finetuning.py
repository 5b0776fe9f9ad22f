"""A finetuning run on every rank of a RankPool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def finetune(config: str, overrides: list[str]) -> dict[str, Any]:
    """Run the job of a config file; its results."""
    import os

    import torch.distributed as dist

    from finetune import session
    from finetune.config import load_finetune_config
    from pretrain.stop import StopSignals

    loaded = load_finetune_config(Path(config), overrides, int(os.environ["WORLD_SIZE"]))
    leave, session.leave_process_group = session.leave_process_group, lambda: None  # the pool leaves it
    try:
        assert session.finetune(loaded, StopSignals()) == 0
    finally:
        session.leave_process_group = leave
    dist.barrier()  # the main rank writes the results last
    results: dict[str, Any] = json.loads((Path(loaded.run_dir) / "results.json").read_text())
    return results


def resave(source: str, run_dir: str, tp: int, zero_stage: int) -> dict[str, Any]:
    """Load the weights of a BERT's checkpoint into an engine of a layout and save them as its step 1.

    Returns:
        The layout that stands in the manifest, and the ranks' files of weights.
    """
    from finetune.source import read_source
    from pretrain.checkpoint import find_checkpoint, load_parameters, save_checkpoint
    from pretrain.checkpoint.manifest import read_manifest
    from pretrain.models import build_model
    from pretrain.optimizer import build_optimizer
    from pretrain.parallel.topology import initialize_topology
    from pretrain.parallel.zero import Engine
    from tests.support.training import Layout, tiny_config

    read = read_source(Path(source))
    model_section = read.architecture.model.model_dump()
    config = tiny_config("bert", Layout(tp=tp, zero_stage=zero_stage), run_dir=run_dir, model=model_section)
    topology = initialize_topology(tp)
    model = build_model(config)
    load_parameters(model, read.parameters, topology)
    engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    tokenizer = read.directory / "tokenizer.model"
    save_checkpoint(engine, config, {"step": 1}, {tokenizer.name: tokenizer.read_bytes()})
    engine.close()
    manifest = read_manifest(find_checkpoint(Path(run_dir)))
    return {"topology": manifest["topology"], "files": sorted(manifest["files"])}
