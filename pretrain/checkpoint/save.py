"""Writing a checkpoint in one go: of a running engine, or weights alone from whole parameters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from pretrain.checkpoint.fragments import Fragment
from pretrain.checkpoint.host_copy import HostMemory
from pretrain.checkpoint.layout import ParameterLayout
from pretrain.checkpoint.manifest import CONFIG, step_directory
from pretrain.checkpoint.probe import Probe
from pretrain.checkpoint.publish import WRITING, complete
from pretrain.checkpoint.snapshot import state_file_name, take_snapshot
from pretrain.checkpoint.state_file import write_state_file
from pretrain.checkpoint.writer import CheckpointWriter
from pretrain.config import JobConfig, dump_yaml
from pretrain.parallel.zero import Engine
from pretrain.step import MicroBatch


def save_checkpoint(
    engine: Engine,
    config: JobConfig,
    trainer: Mapping[str, Any],
    extra_files: Mapping[str, bytes],
    probe: MicroBatch | None = None,
) -> Path:
    """Save weights, moments and the trainer's state, and wait for it; called by all ranks together.

    Args:
        engine: The engine, between optimizer steps.
        config: Saved as `config.yaml`.
        trainer: JSON-able state: `step`, the data cursor and counters.
        extra_files: Further small files (the tokenizer): name -> content.
        probe: This rank's micro-batch for the probe loss; None saves none.

    Raises:
        CheckpointWriteError: On every rank, if any rank could not write; earlier checkpoints are untouched.
    """
    writer = CheckpointWriter(config.checkpoint, "single", lambda: None)
    probed = Probe(probe)
    probed.settle(engine)
    writer.start(take_snapshot(engine, config, trainer, extra_files, HostMemory(), probed))
    writer.settle()
    return step_directory(Path(config.run_dir), int(trainer["step"]))


def write_parameters(
    directory: Path,
    parameters: Mapping[str, Tensor],
    layouts: Mapping[str, ParameterLayout],
    config: BaseModel,
    files: Mapping[str, Path],
) -> None:
    """Write a weights-only checkpoint (no moments, step 0) from whole parameters; one process.

    `files` are copied into it: name there -> file.
    """
    writing = directory.with_name(f"{WRITING}{directory.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    names = list(parameters)
    tensors = {
        f"master/{i}": parameters[name].detach().float().contiguous().view(-1) for i, name in enumerate(names)
    }
    fragments = [Fragment(name, 0, i, 0, parameters[name].numel()) for i, name in enumerate(names)]
    metadata = {"fragments": json.dumps([asdict(fragment) for fragment in fragments])}
    found = write_state_file(writing / state_file_name(0, 0), tensors, metadata)
    topology = {
        "tensor_model_parallel_size": 1,
        "data_parallel_size": 1,
        "zero_stage": 0,
        "precision": "fp32",
    }
    manifest = {
        "step": 0,
        "optimizer_steps": 0,
        "trainer": {"step": 0},
        "parameters": {name: layout.as_json() for name, layout in layouts.items()},
        "topology": topology,
        "files": {state_file_name(0, 0): found},
    }
    copies = {name: path.read_bytes() for name, path in files.items()}
    complete(writing, directory, manifest, {CONFIG: dump_yaml(config).encode(), **copies})
