"""A rank's state at one step: training goes on while it is copied to host memory and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.fragments import MOMENTS, Fragment, RankState
from pretrain.checkpoint.host_copy import HostCopy, HostMemory
from pretrain.checkpoint.layout import ParameterLayout, parameter_layouts
from pretrain.checkpoint.manifest import CONFIG
from pretrain.checkpoint.probe import Probe
from pretrain.config import JobConfig, dump_yaml
from pretrain.parallel.zero import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the state of a rank belongs."""

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    dp_rank: int

    @property
    def file_name(self) -> str:
        """Of the rank's state in a checkpoint."""
        return state_file_name(self.tp_rank, self.dp_rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that a rank writes for one checkpoint; nothing changes once state and probe are there."""

    run_dir: Path
    place: Place
    state: HostCopy
    """"KIND/FLAT" -> [n] fp32 on the host."""
    fragments: list[Fragment]
    layouts: Mapping[str, ParameterLayout]
    manifest: dict[str, Any]
    """What does not depend on the files; the main rank's is written."""
    contents: Mapping[str, bytes]
    """Small files by name: the config, the tokenizer."""
    probe: Probe | None = None
    """The main rank's is saved; it may be still to come."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])


def take_snapshot(
    engine: Engine,
    config: JobConfig,
    trainer: Mapping[str, Any],
    extra_files: Mapping[str, bytes],
    memory: HostMemory,
    probe: Probe | None = None,
) -> Snapshot:
    """This rank's share of weights and moments, between two updates; the next one waits for its copy.

    Args:
        engine: The engine.
        config: Saved as `config.yaml`.
        trainer: JSON-able state: `step`, the data cursor and counters.
        extra_files: Further small files: name -> content.
        memory: Where the copies go.
        probe: Of this checkpoint; whoever gives one that is still to come must offer, settle or close it.
    """
    topology, state = engine.topology, RankState(engine)
    mine = own_fragments(engine, state.fragments)
    keep = {fragment.flat for fragment in mine}
    flats = {"master": dict(enumerate(state.flats))} | {kind: state.moments(kind) for kind in MOMENTS}
    tensors = {f"{kind}/{i}": flat for kind in flats for i, flat in flats[kind].items() if i in keep}
    layouts = parameter_layouts(engine.model, topology.tensor_model_parallel_size)
    manifest = {
        "step": int(trainer["step"]),
        "optimizer_steps": state.optimizer_steps(),
        "trainer": dict(trainer),
        "loss_scale": engine.loss_scale.state(),
        "parameters": {name: layout.as_json() for name, layout in layouts.items()},
        "topology": layout_of(engine),
    }
    copy = memory.copy_of(tensors)
    engine.pending_reads.add(copy.make)
    return Snapshot(
        run_dir=Path(config.run_dir),
        place=place_of(engine),
        state=copy,
        fragments=mine,
        layouts=layouts,
        manifest=manifest,
        contents={CONFIG: dump_yaml(config).encode(), **extra_files},
        probe=probe,
    )


def own_fragments(engine: Engine, fragments: list[Fragment]) -> list[Fragment]:
    """Those that this rank writes: at stage 0 data ranks hold the same and deal them out among themselves."""
    if engine.zero_stage:
        return fragments
    size, rank = engine.topology.data_parallel_size, engine.topology.data_parallel_rank
    return [fragment for fragment in fragments if fragment.flat % size == rank]


def place_of(engine: Engine) -> Place:
    """Where this rank's state belongs."""
    topology = engine.topology
    return Place(
        rank=topology.rank,
        world_size=topology.world_size,
        tp_rank=topology.tensor_model_parallel_rank,
        tp_size=topology.tensor_model_parallel_size,
        dp_rank=topology.data_parallel_rank,
    )


def layout_of(engine: Engine) -> dict[str, Any]:
    """TP x DP x ZeRO and precision, as a manifest has them."""
    return {
        "tensor_model_parallel_size": engine.topology.tensor_model_parallel_size,
        "data_parallel_size": engine.topology.data_parallel_size,
        "zero_stage": engine.config.parallel.zero_stage,
        "precision": engine.config.precision,
    }


def state_file_name(tp_rank: int, dp_rank: int) -> str:
    """Of one rank's state."""
    return f"state-tp{tp_rank:02d}-dp{dp_rank:04d}.safetensors"
