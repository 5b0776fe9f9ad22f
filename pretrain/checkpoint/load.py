"""Reading a checkpoint into any layout: whole parameters, or this rank's share of weights and moments."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data_tools.errors import DataError
from data_tools.tokenizer import corpus_tokenizer
from pretrain.checkpoint.fragments import KINDS, MOMENTS, Fragment, RankState
from pretrain.checkpoint.layout import ParameterLayout, parameter_layouts
from pretrain.checkpoint.manifest import CONFIG, CheckpointError, described_layout, read_manifest
from pretrain.checkpoint.probe import check_probe
from pretrain.checkpoint.proof import loaded_fingerprints
from pretrain.checkpoint.snapshot import layout_of
from pretrain.faults import fault
from pretrain.parallel.topology import Topology
from pretrain.parallel.zero import Engine
from pretrain.step import MicroBatch


class StateReader:
    """Random access to the tensors of a checkpoint, however it was sharded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory)
        self.layouts = {name: ParameterLayout.from_json(v) for name, v in self.manifest["parameters"].items()}
        self._tp_size = int(self.manifest["topology"]["tensor_model_parallel_size"])
        self._files: dict[str, Any] = {}
        self._index: dict[tuple[str, int], list[tuple[Any, Fragment]]] = defaultdict(list)
        for name in sorted(self.manifest["files"]):
            if name.startswith("state-"):
                self._open(name)

    def full(self, kind: str, name: str) -> Tensor:
        """A whole fp32 parameter (kind "master") or moment."""
        layout = self.layouts[name]
        ranks = range(1 if layout.tp_dim is None else self._tp_size)
        return layout.merge([self._saved_shard(kind, name, rank) for rank in ranks])

    def shard(self, kind: str, name: str, rank: int, size: int) -> Tensor:
        """The slice of tensor-parallel rank `rank` of `size`."""
        if size == self._tp_size:
            return self._saved_shard(kind, name, rank)
        return self.layouts[name].split(self.full(kind, name), rank, size)

    def _open(self, name: str) -> None:
        try:
            handle: Any = safe_open(self.directory / name, framework="pt")
            tp_rank = int(name[len("state-tp") :].split("-")[0])
            for entry in json.loads(handle.metadata()["fragments"]):
                fragment = Fragment(**entry)
                self._index[fragment.name, tp_rank].append((handle, fragment))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.directory / name}: not a state file of headwater: {error}"
            ) from error

    def _saved_shard(self, kind: str, name: str, tp_rank: int) -> Tensor:
        shape = self.layouts[name].shard_shape(self._tp_size)
        shard = torch.empty(shape).view(-1)
        covered = 0
        for handle, fragment in self._index[name, tp_rank]:
            stored = handle.get_slice(f"{kind}/{fragment.flat}")
            end = fragment.flat_start + fragment.numel
            shard[fragment.start : fragment.start + fragment.numel] = stored[fragment.flat_start : end]
            covered += fragment.numel
        if covered != shard.numel():
            raise CheckpointError(
                f"{self.directory}: {name}: {covered} of {shard.numel()} elements stored "
                f"for tensor-parallel rank {tp_rank}"
            )
        return shard.view(shape)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came with the weights and moments of a checkpoint."""

    trainer: dict[str, Any]
    """The trainer's state: `step`, the data cursor and counters."""
    proof: str
    """One line: from which layout to which, what was compared."""
    probe: MicroBatch | None
    """The micro-batch of the probe loss."""


def load_checkpoint(engine: Engine, directory: Path) -> Loaded:
    """Load weights and moments into a running engine of any TP x DP x ZeRO layout.

    Raises:
        CheckpointError: If parameters are missing, have other shapes, or did not arrive as they were saved,
            or if the probe loss is another one.
    """
    reader = StateReader(directory)
    topology = engine.topology
    wanted = parameter_layouts(engine.model, topology.tensor_model_parallel_size)
    _check_names(reader.layouts, wanted, directory)
    if surplus := [name for name in reader.layouts if name not in wanted]:
        raise CheckpointError(
            f"{directory}: the model has no {surplus[0]}; is it another model's checkpoint?"
        )
    engine.pending_reads.wait()
    state = RankState(engine)
    steps = int(reader.manifest["optimizer_steps"])
    if steps or state.optimizer_steps():
        state.prepare_moments(steps)
    fragments = defaultdict(list)
    for fragment in state.fragments:
        fragments[fragment.name].append(fragment)
    for name in reader.layouts:
        for kind in KINDS if steps else KINDS[:1]:
            if kind in MOMENTS and not any(map(state.is_trained, fragments[name])):
                continue
            shard = reader.shard(
                kind, name, topology.tensor_model_parallel_rank, topology.tensor_model_parallel_size
            )
            if kind == "master":
                state.refresh_model(name, shard)
            for fragment in fragments[name]:
                mine = shard.view(-1).narrow(0, fragment.start, fragment.numel)
                state.view(fragment, kind).copy_(mine)
        fault("load.parameter")
    told = [_check_fingerprints(engine, reader)]
    before, now = reader.manifest["topology"], layout_of(engine)
    if before != now:
        told.insert(0, f"{described_layout(before)} -> {described_layout(now)}")
    engine.loss_scale.load_state(reader.manifest.get("loss_scale", {}))
    probed, probe = check_probe(engine, directory, reader.manifest)
    return Loaded(reader.manifest["trainer"], "; ".join([*told, probed]), probe)


def _check_fingerprints(engine: Engine, reader: StateReader) -> str:
    """Compare what arrived in the engine with what was saved, whatever the layouts; on all ranks together."""
    saved = reader.manifest.get("fingerprints")
    if not saved:
        return "weights alone, without fingerprints"
    loaded = loaded_fingerprints(engine, reader.layouts)
    rounded: set[str] = set()
    if reader.manifest["topology"]["precision"] != engine.config.precision:
        # What is not trained has no fp32 master weights: it is what this precision makes of it.
        rounded = {name for name, p in engine.model.named_parameters() if not p.requires_grad}
    wrong = [name for name in reader.layouts if loaded[name] != saved[name] and name not in rounded]
    if wrong:
        raise CheckpointError(
            f"{reader.directory}: {len(wrong)} of {len(saved)} parameters did not arrive as they were saved, "
            f"the first is {wrong[0]}; the run cannot go on from it in this layout"
        )
    return f"fingerprints of {len(saved)} parameters equal"


def read_parameters(directory: Path) -> dict[str, Tensor]:
    """All parameters of a checkpoint, whole, fp32, on the CPU; vocabulary padding included."""
    reader = StateReader(directory)
    return {name: reader.full("master", name) for name in reader.layouts}


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration that was saved with a checkpoint."""
    path = directory / CONFIG
    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return config


def tokenizer_path(directory: Path) -> Path:
    """The tokenizer copied into a checkpoint.

    Raises:
        CheckpointError: If it has none.
    """
    try:
        return corpus_tokenizer(directory)
    except DataError as error:
        raise CheckpointError(str(error)) from error


@torch.no_grad()
def load_parameters(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    topology: Topology,
    allow_missing: tuple[str, ...] = (),
) -> None:
    """Copy whole parameters into a model that no engine owns yet, each rank its tensor-parallel slice.

    Args:
        model: Built at the topology's tensor-parallel size.
        parameters: Whole tensors by name; further ones are ignored.
        topology: Rank and size to slice for.
        allow_missing: Prefixes of parameters that keep their fresh values (a new task head).

    Raises:
        CheckpointError: If a parameter is missing or has another shape.
    """
    rank, size = topology.tensor_model_parallel_rank, topology.tensor_model_parallel_size
    layouts = parameter_layouts(model, size)
    needed = {
        name: layout for name, layout in layouts.items() if not name.startswith(allow_missing or ("\0",))
    }
    given = {
        name: ParameterLayout(tuple(parameters[name].shape), None) for name in needed if name in parameters
    }
    _check_names(given, needed, None)
    for name, parameter in model.named_parameters():
        if name in needed:
            parameter.copy_(needed[name].split(parameters[name], rank, size))


def _check_names(
    saved: Mapping[str, ParameterLayout], wanted: Mapping[str, ParameterLayout], source: Path | None
) -> None:
    where = f"{source}: " if source else ""
    missing = [name for name in wanted if name not in saved]
    if missing:
        raise CheckpointError(
            f"{where}the checkpoint has no {missing[0]} ({len(missing)} parameters missing); "
            "is it another model?"
        )
    for name, layout in wanted.items():
        if saved[name].shape != layout.shape:
            raise CheckpointError(
                f"{where}{name} has shape {saved[name].shape} in the checkpoint, "
                f"the model wants {layout.shape}"
            )
