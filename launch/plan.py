"""A launch plan: what every rank of a run executes, computed without starting anything.

The plan is data. A backend renders it: `launch.local` spawns it on this machine. Nothing here reads the
machine; what depends on it (cores, devices, a free port) comes in as arguments.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One process of a run."""

    rank: int
    host: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    """What this rank's environment has on top of the launcher's own."""

    def shell(self) -> str:
        """The rank as one line that can be pasted into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*settings, shlex.join(self.argv)])


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """One run on a number of hosts with the same number of ranks each."""

    run_dir: Path
    config: Path
    overrides: tuple[str, ...]
    """`a.b=c` texts, passed on to every rank as `--set`."""
    python: str
    """The interpreter that runs the ranks."""
    hosts: tuple[str, ...]
    """The first one holds rank 0, where the others meet."""
    ranks_per_host: int
    master_port: int
    env: Mapping[str, str]
    """What all ranks share: threads, accelerator, network settings."""
    module: str = "pretrain.train"

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.hosts) * self.ranks_per_host

    @property
    def log_dir(self) -> Path:
        """Where the output of the ranks goes."""
        return self.run_dir / "logs"

    def log_path(self, rank: int) -> Path:
        """The log of one rank; attempts append to it."""
        return self.log_dir / f"rank-{rank}.log"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command of every rank; who is which is told by the environment."""
        settings = [word for text in self.overrides for word in ("--set", text)]
        return (self.python, "-m", self.module, "--config", str(self.config), *settings)

    @property
    def ranks(self) -> tuple[RankPlan, ...]:
        """All ranks in order."""
        return tuple(self._rank(rank) for rank in range(self.world_size))

    def _rank(self, rank: int) -> RankPlan:
        host, local_rank = divmod(rank, self.ranks_per_host)
        place = {
            "RANK": rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": self.ranks_per_host,
            "MASTER_ADDR": self.hosts[0],
            "MASTER_PORT": self.master_port,
        }
        env = {**self.env, **{name: str(value) for name, value in place.items()}}
        return RankPlan(rank=rank, host=self.hosts[host], argv=self.argv, env=env)


def rank_environment(
    user_env: Mapping[str, str], *, cores: int, ranks_per_host: int, has_accelerator: bool
) -> dict[str, str]:
    """The settings that all ranks share; what the user has set himself stays.

    Args:
        user_env: The launcher's own environment.
        cores: CPU cores that this host may use.
        ranks_per_host: Ranks that share them.
        has_accelerator: Whether the host has a GPU.
    """
    # Without a limit each rank starts one thread per core, and the ranks fight for them.
    defaults = {"OMP_NUM_THREADS": str(max(1, cores // ranks_per_host)), "PYTHONUNBUFFERED": "1"}
    if not has_accelerator:
        # DeepSpeed's own detection is not reliable on machines without a GPU.
        defaults["DS_ACCELERATOR"] = "cpu"
        # Tensors in pages of 2 MB, where the kernel gives them on request: a tenth of a step on CPU.
        defaults["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    return {name: user_env.get(name, value) for name, value in defaults.items()}
