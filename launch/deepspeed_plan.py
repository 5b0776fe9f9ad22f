"""What DeepSpeed's launcher is told to start: hosts, command, variables. Pure: nothing is started here.

Facts of deepspeed 0.19.8 that shape this:

- pdsh and openmpi pass on few variables. For pdsh the others go into a file (`DS_ENV_FILE`); mpirun takes
  them as `-x NAME=VALUE`; srun passes on everything.
- It guesses the first host from `hostname -I`, so that is given. It would run a single host of the hostfile
  here instead of there (`--force_multi`).
- Its slurm backend forgets the `-m` of `--module`, so the module goes into the name of the "script". It tells
  ranks no place; they take it from srun (`pretrain.config.environment`). It names no nodes to srun.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.config import ConfigError

BACKENDS = {"pdsh": "pdsh", "openmpi": "ompi_info", "slurm": "sinfo"}
"""Ways to reach the other hosts, each with the program that DeepSpeed looks for."""

_HOST_LINE = re.compile(r"(\S+)\s+slots=([1-9]\d*)\s*(?:#.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepspeedPlan:
    """A run on the hosts of a hostfile."""

    hostfile: Path
    hosts: dict[str, int]
    """Ranks on each host, in the order of the file."""
    run_dir: Path
    config: Path
    overrides: tuple[str, ...]
    backend: str
    master_addr: str
    master_port: int
    node_rank: int | None
    """Set where the command runs on every host by itself (--no_ssh)."""
    launcher_args: str
    env: dict[str, str]
    """Variables for the ranks."""
    module: str = "pretrain.train"
    python: str = sys.executable

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return sum(self.hosts.values())

    @property
    def needs_environment_file(self) -> bool:
        """Whether the variables go through a file."""
        return bool(self.env) and self.node_rank is None and self.backend == "pdsh"

    @property
    def environment_file(self) -> Path:
        """Where DeepSpeed finds the variables that pdsh is to pass on."""
        return self.run_dir.absolute() / "deepspeed_env"

    @property
    def launcher_env(self) -> dict[str, str]:
        """Variables of the deepspeed command itself."""
        if self.needs_environment_file:
            return {"DS_ENV_FILE": str(self.environment_file)}
        # Ranks on this host inherit them, and srun passes on all that it has itself.
        return self.env if self.node_rank is not None or self.backend == "slurm" else {}

    @property
    def argv(self) -> tuple[str, ...]:
        """The deepspeed command."""
        words = [self.python, "-m", "deepspeed.launcher.runner", "--hostfile", str(self.hostfile)]
        words += ["--master_addr", self.master_addr, "--master_port", str(self.master_port)]
        if self.node_rank is not None:
            words += ["--no_ssh", "--node_rank", str(self.node_rank)]
        else:
            words += ["--launcher", self.backend, "--force_multi"]
            if self.backend == "slurm":
                words.append("--no_ssh_check")
            if backend_args := self._backend_args():
                words.append(f"--launcher_args={backend_args}")
        settings = [word for text in self.overrides for word in ("--set", text)]
        ranks = ["--config", str(self.config), *settings]
        if self.node_rank is None and self.backend == "slurm":
            return (*words, "--", f"-m{self.module}", *ranks)
        if self.node_rank is None and self.backend == "pdsh":
            ranks = [_for_remote_shell(word) for word in ranks]
        return (*words, "--module", self.module, *ranks)

    def _backend_args(self) -> str:
        words: list[str] = []
        if self.backend == "slurm":
            words += [f"--nodes={len(self.hosts)}", f"--nodelist={','.join(self.hosts)}"]
            words += [f"--ntasks-per-node={self.world_size // len(self.hosts)}", "--distribution=block"]
        if self.backend == "openmpi":
            place = {"MASTER_ADDR": self.master_addr, "MASTER_PORT": str(self.master_port)}
            words += [word for item in (place | self.env).items() for word in ("-x", "=".join(item))]
        return " ".join([shlex.join(words), self.launcher_args]).strip()


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots: `NAME slots=N` lines, as DeepSpeed reads them.

    Raises:
        ConfigError: Naming the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the hostfile: {error.strerror}", source=str(path)) from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _HOST_LINE.fullmatch(line.strip())
        if match is None or match[1] in hosts:
            problem = "is there twice" if match else "write NAME slots=N"
            raise ConfigError(f"line {number}: {line.strip()!r}: {problem}", source=str(path))
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise ConfigError("no hosts; write a line NAME slots=N for each", source=str(path))
    return hosts


def render(plan: DeepspeedPlan) -> str:
    """The launch as a shell script, with what goes into the hostfile and the file of variables."""
    lines = [f"# {plan.hostfile}: {plan.world_size} ranks"]
    lines += [f"#   {host} slots={slots}" for host, slots in plan.hosts.items()]
    if plan.needs_environment_file:
        lines.append(f"# {plan.environment_file}: variables of the ranks")
        lines += [f"#   {line}" for line in environment_text(plan).splitlines()]
    settings = [f"{name}={shlex.quote(value)}" for name, value in plan.launcher_env.items()]
    return "\n".join([*lines, " ".join([*settings, shlex.join(plan.argv)]), ""])


def environment_text(plan: DeepspeedPlan, before: Sequence[str] = ()) -> str:
    """NAME=VALUE lines, whose values the remote shell reads; behind those of other such files."""
    lines = [line for text in before for line in text.splitlines() if "=" in line]
    return "".join(f"{line}\n" for line in [*lines, *map("=".join, plan.env.items())])


def variable(text: str) -> tuple[str, str]:
    """Name and value of `--env NAME=VALUE`.

    Raises:
        ConfigError: If it is none, or the shell of another host would change the value.
    """
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ConfigError(f"--env {text!r}: write NAME=VALUE")
    if re.search(r'["$`\\\n]', value):
        raise ConfigError(f"--env {text!r}: the remote shell would read the value; set it in a script there")
    return name, value


def backend_problems(plan: DeepspeedPlan) -> list[str]:
    """What a backend cannot do with the hosts."""
    if plan.node_rank is None and plan.backend == "slurm" and len(set(plan.hosts.values())) > 1:
        return [f"{plan.hostfile}: --launcher slurm needs the same slots on every host"]
    if plan.node_rank is not None and not 0 <= plan.node_rank < len(plan.hosts):
        return [f"--node-rank {plan.node_rank}: the hostfile has {len(plan.hosts)} hosts, counted from 0"]
    return []


def _for_remote_shell(word: str) -> str:
    """A word as pdsh must get it: the shell of the other host reads it once more."""
    quoted = shlex.quote(word)
    # DeepSpeed itself puts double quotes around words with blanks, within which a shell still expands.
    if quoted != word and " " in word:
        raise ConfigError(
            f"{word!r}: DeepSpeed's pdsh launcher cannot pass a blank on; write it into the config"
        )
    return quoted.replace("%", "%%")  # pdsh puts host names and ranks in place of %h and %n
