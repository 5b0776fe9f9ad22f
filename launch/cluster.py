"""The cluster configuration: where runs go, apart from what they compute.

One YAML file describes one way to run on one cluster; any run config goes with it. Validated like the run
config: frozen, unknown keys refused with the nearest match, all problems at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pretrain.config import ConfigError
from pretrain.config.load import parse_section, read_yaml
from pretrain.config.section import NonNegativeInt, PositiveInt, Section

# minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS (sbatch(1), --time)
_TIME_LIMIT = re.compile(r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(\d+)(?::(\d+)(?::(\d+))?)?)")
_NODES = re.compile(r"([1-9]\d*)(?:-([1-9]\d*))?")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")

NonNegativeNumber = Annotated[float, Field(ge=0.0, strict=False)]
PositiveNumber = Annotated[float, Field(gt=0.0, strict=False)]
Environment = dict[str, str | int]


class ContainerConfig(Section):
    """A container image that the ranks run in; the job script itself runs outside."""

    runtime: Literal["pyxis", "apptainer"]
    image: str
    mounts: list[str] = []
    """`HOST:CONTAINER` each. The working directory, the run directory and the data must be among them."""
    python: str = "python"
    """The interpreter in the image."""


class PreflightConfig(Section):
    """What a node must have before ranks start on it; a node that has not is left out."""

    min_memory_gb: NonNegativeNumber = 0.0
    """Free host memory of a node."""
    scratch_paths: list[str] = []
    """Directories on each node's own disk that the ranks write to (caches)."""
    min_scratch_gb: NonNegativeNumber = 1.0
    max_clock_skew_seconds: NonNegativeNumber = 30.0
    timeout_seconds: PositiveInt = 50
    """A node that has not answered by then counts as lost."""
    all_reduce_seconds: NonNegativeInt = 120
    """For one all-reduce over the nodes before the ranks start, loading torch included; 0 leaves it out."""


class SpeedConfig(Section):
    """How fast devices and links are, for `headwater scaling`; measured values, not those of data sheets."""

    device_tflops: PositiveNumber
    """What one device alone reaches on the model: `model_tflops` of a run on one rank."""
    within_node_gb_per_second: PositiveNumber
    """What a rank sends in a large all-reduce within a node: `busbw` of nccl-tests."""
    between_nodes_gb_per_second: PositiveNumber
    """The share of one rank in what leaves its node: `busbw` over several nodes / ranks_per_node."""


class _Cluster(Section):
    """What local and SLURM clusters share."""

    ranks_per_node: PositiveInt
    """One rank for each GPU."""
    device_memory_gb: NonNegativeNumber = 0.0
    """Memory of one GPU, which `headwater check` compares its estimate with; 0 does not compare."""
    speed: SpeedConfig | None = None
    """null: unknown, and `headwater scaling` has nothing to go by."""
    env: Environment = {}
    """Variables of the ranks, taken literally (NCCL_IB_HCA, ...)."""

    @field_validator("env")
    @classmethod
    def _names(cls, env: Environment) -> Environment:
        wrong = [name for name in env if not _VARIABLE.fullmatch(name)]
        if wrong:
            raise ValueError(f"not names of variables: {', '.join(wrong)}")
        return env


class LocalClusterConfig(_Cluster):
    """This machine."""

    kind: Literal["local"]


class SlurmClusterConfig(_Cluster):
    """A part of a SLURM cluster. What is null is left to SLURM's own defaults."""

    kind: Literal["slurm"]
    nodes: int | str
    """A number, or a range such as 2-8: every attempt takes what it gets."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs to ask for; null asks for none, for clusters that give out whole nodes."""
    cpus_per_rank: PositiveInt = 1
    cpu_bind: str | None = None
    """srun's --cpu-bind: cores, ldoms, map_cpu:..., none."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit: str
    """As sbatch takes it: 24:00:00, 2-00:00:00, or minutes in quotes. A limit shorter than the run is normal:
    the job goes on."""
    signal_lead_seconds: PositiveInt | Literal["auto"] = "auto"
    """Time to save before the limit; auto measures steps and saves of the run's earlier attempts."""
    max_failures: NonNegativeInt = 3
    """Crashes in a row, without a checkpoint in between, after which the job gives up."""
    sbatch_options: list[str] = []
    """More options of sbatch: --constraint=..., --exclusive, --mail-type=END."""
    srun_options: list[str] = []
    """More options of srun for the ranks."""
    setup: str = ""
    """Shell lines before everything else, verbatim: module load ..., source .venv/bin/activate, export ..."""
    python: str | None = None
    """The interpreter on the nodes; null takes the one that submits. With a container: the one outside."""
    container: ContainerConfig | None = None
    preflight: PreflightConfig = PreflightConfig()

    @field_validator("nodes")
    @classmethod
    def _node_range(cls, nodes: int | str) -> int | str:
        match = _NODES.fullmatch(str(nodes))
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError("give a number of nodes or a range such as 2-8")
        return nodes

    @field_validator("time_limit", mode="before")
    @classmethod
    def _quoted(cls, limit: object) -> object:
        if not isinstance(limit, str):  # minutes for sbatch, seconds elsewhere
            raise ValueError(
                'write hours:minutes:seconds, such as 24:00:00, or minutes in quotes, such as "90"'
            )
        if not _TIME_LIMIT.fullmatch(limit) or time_limit_seconds(limit) == 0:
            raise ValueError('must be as sbatch takes it: "24:00:00", "2-00:00:00" or minutes')
        return limit

    @model_validator(mode="after")
    def _lead_fits(self) -> SlurmClusterConfig:
        lead, limit = self.signal_lead_seconds, time_limit_seconds(self.time_limit)
        if lead != "auto" and lead >= limit:
            raise ValueError(f"signal_lead_seconds: {lead} does not fit into time_limit: {self.time_limit}")
        return self

    @property
    def min_nodes(self) -> int:
        """Fewest nodes of an attempt."""
        return int(str(self.nodes).partition("-")[0])

    @property
    def max_nodes(self) -> int:
        """Most nodes of an attempt."""
        return int(str(self.nodes).rpartition("-")[2])


ClusterConfig = LocalClusterConfig | SlurmClusterConfig


def load_cluster(path: Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read, override and validate a cluster configuration.

    Raises:
        ConfigError: With every problem found in the file.
    """
    data = read_yaml(path, overrides, option="--cluster-set")
    kinds: dict[object, type[LocalClusterConfig] | type[SlurmClusterConfig]] = {
        "local": LocalClusterConfig,
        "slurm": SlurmClusterConfig,
    }
    kind = kinds.get(data.get("kind"))
    if kind is None:
        raise ConfigError(f"kind: must be 'local' or 'slurm' (got {data.get('kind')!r})", source=str(path))
    return parse_section(kind, data, source=str(path))


def time_limit_seconds(limit: str) -> int:
    """Seconds of a time limit in one of sbatch's forms."""
    match = _TIME_LIMIT.fullmatch(limit)
    assert match is not None, limit
    days, hours, minutes, seconds, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is not None:
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if match[7] is not None:
        return (first * 60 + second) * 60 + third
    return first * 60 + second
