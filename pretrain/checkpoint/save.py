"""Writing a checkpoint: every rank its own file, the manifest last, then one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pretrain.checkpoint.files import fingerprint, flush, write_json
from pretrain.checkpoint.fragments import MOMENTS, Fragment, RankState
from pretrain.checkpoint.layout import ParameterLayout, parameter_layouts
from pretrain.checkpoint.manifest import (
    CONFIG,
    FORMAT_VERSION,
    MANIFEST,
    CheckpointError,
    checkpoints_directory,
    list_checkpoints,
    step_directory,
)
from pretrain.config import JobConfig, dump_yaml
from pretrain.parallel.zero import Engine


def save_checkpoint(
    engine: Engine, config: JobConfig, trainer: Mapping[str, Any], extra_files: Mapping[str, Path]
) -> Path:
    """Save weights, moments and the trainer's state; called by all ranks together.

    Args:
        engine: The engine, between optimizer steps.
        config: Saved as `config.yaml`.
        trainer: JSON-able state: `step`, the data cursor and counters.
        extra_files: Name in the checkpoint -> file to copy (the tokenizer).

    Raises:
        CheckpointError: On every rank, if any rank could not write; earlier checkpoints are untouched.
    """
    run_dir = Path(config.run_dir)
    final = step_directory(run_dir, int(trainer["step"]))
    writing = final.with_name(f".writing-{final.name}")
    main = engine.topology.is_main
    state = RankState(engine)
    _gather_outcomes(lambda: _prepare(writing) if main else {})
    files = _gather_outcomes(lambda: _write_rank_file(writing, engine, state))
    manifest = {
        "step": int(trainer["step"]),
        "optimizer_steps": state.optimizer_steps(),
        "trainer": dict(trainer),
        "parameters": _layouts_json(
            parameter_layouts(engine.model, engine.topology.tensor_model_parallel_size)
        ),
        "topology": {
            "tensor_model_parallel_size": engine.topology.tensor_model_parallel_size,
            "data_parallel_size": engine.topology.data_parallel_size,
            "zero_stage": engine.zero_stage,
            "precision": config.precision,
        },
    }
    _gather_outcomes(
        lambda: _complete(writing, final, files, manifest, dump_yaml(config), extra_files) if main else {}
    )
    if main:
        _prune(run_dir, final, config.checkpoint.keep_last)
    return final


def _prepare(writing: Path) -> dict[str, Any]:
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    return {}


def write_parameters(
    directory: Path,
    parameters: Mapping[str, Tensor],
    layouts: Mapping[str, ParameterLayout],
    config: BaseModel,
    files: Mapping[str, Path],
) -> None:
    """Write a weights-only checkpoint (no moments, step 0) from whole parameters; one process."""
    writing = directory.with_name(f".writing-{directory.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    names = list(parameters)
    tensors = {
        f"master/{i}": parameters[name].detach().float().contiguous().view(-1) for i, name in enumerate(names)
    }
    fragments = [Fragment(name, 0, i, 0, parameters[name].numel()) for i, name in enumerate(names)]
    written = _write_state_file(writing / _state_name(0, 0), tensors, fragments)
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
        "parameters": _layouts_json(layouts),
        "topology": topology,
    }
    _complete(writing, directory, written, manifest, dump_yaml(config), files)


def _write_rank_file(writing: Path, engine: Engine, state: RankState) -> dict[str, Any]:
    topology = engine.topology
    whole = engine.zero_stage == 0
    # Stage 0 replicates everything over data ranks: deal the parameters out, so that all of them write.
    mine = [
        fragment
        for fragment in state.fragments
        if not whole or fragment.flat % topology.data_parallel_size == topology.data_parallel_rank
    ]
    keep = {fragment.flat for fragment in mine}
    tensors = {f"master/{i}": flat for i, flat in enumerate(state.flats) if i in keep}
    for kind in MOMENTS:
        tensors |= {f"{kind}/{i}": flat for i, flat in state.moments(kind).items() if i in keep}
    name = _state_name(topology.tensor_model_parallel_rank, topology.data_parallel_rank)
    on_host = {key: tensor.detach().to("cpu", torch.float32) for key, tensor in tensors.items()}
    return _write_state_file(writing / name, on_host, mine)


def _write_state_file(path: Path, tensors: Mapping[str, Tensor], fragments: list[Fragment]) -> dict[str, Any]:
    save_file(dict(tensors), path, metadata={"fragments": json.dumps([asdict(f) for f in fragments])})
    flush(path)
    return {path.name: fingerprint(path)}


def _state_name(tp_rank: int, dp_rank: int) -> str:
    return f"state-tp{tp_rank:02d}-dp{dp_rank:04d}.safetensors"


def _complete(  # noqa: PLR0913 (one call writes everything that belongs together)
    writing: Path,
    final: Path,
    files: dict[str, Any],
    manifest: dict[str, Any],
    config: str,
    extra: Mapping[str, Path],
) -> dict[str, Any]:
    """Add config, copies and manifest, flush, and give the directory its name."""
    files = dict(files)
    (writing / CONFIG).write_text(config, encoding="utf-8")
    for name, source in extra.items():
        shutil.copyfile(source, writing / name)
    for name in (CONFIG, *extra):
        flush(writing / name)
        files[name] = fingerprint(writing / name)
    versions = {name: version(name) for name in ("torch", "deepspeed", "megatron-core")}
    write_json(
        writing / MANIFEST,
        manifest | {"format_version": FORMAT_VERSION, "files": files, "versions": versions},
    )
    if final.exists():  # written by an attempt whose run then went back to an earlier step, or damaged
        _set_aside(final)
    os.rename(writing, final)
    flush(final.parent)
    return {}


def _set_aside(directory: Path) -> None:
    number = 1
    while (aside := directory.with_name(f"{directory.name}.replaced-{number}")).exists():
        number += 1
    os.rename(directory, aside)


def _gather_outcomes(work: Any) -> dict[str, Any]:
    """Run `work` on this rank and merge the results of all ranks; one failure fails all, with its reason."""
    try:
        outcome: dict[str, Any] = {"files": work()}
    except (OSError, RuntimeError, SafetensorError) as error:
        outcome = {"error": f"rank {dist.get_rank()}: {error}"}
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome)
    errors = [o["error"] for o in outcomes if "error" in o]
    if errors:
        raise CheckpointError(
            f"the checkpoint was not written ({'; '.join(errors)}); earlier checkpoints are untouched"
        )
    return {name: info for o in outcomes for name, info in o["files"].items()}


def _layouts_json(layouts: Mapping[str, ParameterLayout]) -> dict[str, Any]:
    return {name: layout.as_json() for name, layout in layouts.items()}


def _prune(run_dir: Path, newest: Path, keep_last: int) -> None:
    """Remove all but the last checkpoints up to `newest`; later ones are damaged or of a lost branch."""
    kept_or_old = [directory for directory in list_checkpoints(run_dir) if directory.name <= newest.name]
    for directory in kept_or_old[:-keep_last]:
        doomed = checkpoints_directory(run_dir) / f".removing-{directory.name}"
        try:
            os.rename(directory, doomed)  # never half of a checkpoint under a good name
            shutil.rmtree(doomed)
        except OSError as error:
            print(f"warning: {directory}: cannot be removed: {error.strerror}", flush=True)
