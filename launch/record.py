"""How a run was launched, kept in its run directory as `launch.json`: what status, stop and resume go by."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from pretrain.config import ConfigError

FILE_NAME = "launch.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """The latest launch of a run."""

    backend: Literal["local", "slurm", "deepspeed"]
    argv: tuple[str, ...]
    """The words after `headwater`; the same words start it again."""
    directory: str
    """Where they were said: relative paths begin there."""
    job_id: str | None = None
    """SLURM's number of the job; with `_N` for a run of an array."""
    script: str | None = None
    """The batch script."""
    launched: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))


def write_record(run_dir: Path, record: LaunchRecord) -> None:
    """Keep the record; an older one is replaced at once or not at all."""
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = run_dir / f"{FILE_NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    temporary.replace(run_dir / FILE_NAME)


def read_record(run_dir: Path) -> LaunchRecord:
    """The record of a run.

    Raises:
        ConfigError: If nobody launched a run there.
    """
    path = run_dir / FILE_NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return LaunchRecord(**{**fields, "argv": tuple(fields["argv"])})
    except FileNotFoundError:
        raise ConfigError(
            f"{run_dir}: no {FILE_NAME} there; give the run_dir of a run that `headwater launch` started"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); launch the run again as before") from error
