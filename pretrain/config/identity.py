"""Whose a run directory is: the keys that may not change between attempts, and the lock of a running job."""

from __future__ import annotations

import fcntl
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TextIO

import yaml
from pydantic import ValidationError

from pretrain.config.errors import ConfigError
from pretrain.config.schema import JobConfig

MAY_CHANGE = (
    "run_dir",
    "parallel.*",
    "precision",
    "checkpoint.*",
    "training.*",
    "bad_steps.*",
    "deepspeed*",
    "batch.*",
    "data.corpora.*",
    "data.tokenizer",
    "data.prefetch_steps",
    "data.verify_blocks",
    "data.access",
    "data.cache_dir",
    "data.cache_gb",
    "data.remote.*",
    "data.on_bad_block",
)
"""Layout, precision, intervals and paths may differ when a run goes on; everything else is the run's
identity.

Batch sizes, seq_length and the mixture of corpora may change too: the data stream goes on in a new phase
(`pretrain.data.phases`) and refuses what it cannot continue. Corpora that moved are still recognised: the
data cursor holds the hash of each manifest. The schedule counts optimizer steps, so it stays as it is.
`training.train_steps` may grow or shrink; the learning-rate schedule then follows the new length.
"""


def identity(config: JobConfig) -> dict[str, Any]:
    """The identifying keys, flattened: "model.num_layers" -> 2."""
    return _identifying(config.model_dump(mode="json"))


def check_run_directory(config: JobConfig) -> None:
    """Refuse a run directory in which an earlier attempt trained with another configuration.

    An attempt that ended before its first metrics (wrong data, say) left nothing to protect.

    Raises:
        ConfigError: Naming each key that differs.
    """
    path = _stored_config(Path(config.run_dir))
    if path is None:
        return
    try:
        stored = _stored_identity(yaml.safe_load(path.read_text(encoding="utf-8")), type(config))
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ConfigError(
            f"run_dir: cannot read {path}: {error}; choose another run_dir or remove it"
        ) from error
    wanted = identity(config)
    changed = [
        f"{key} (there {stored.get(key)!r}, now {wanted.get(key)!r})"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key) != wanted.get(key)
    ]
    if changed:
        raise ConfigError(
            f"run_dir: {config.run_dir} belongs to another config; choose another run_dir. "
            f"It differs in: {', '.join(changed)}"
        )


def lock_run_directory(run_dir: str) -> TextIO:
    """Take the lock of a run directory; it is held until the file is closed or the process ends.

    Raises:
        ConfigError: If another job holds it, or the directory cannot be written.
    """
    path = Path(run_dir) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"run_dir: another job is training in {run_dir}; wait for it or choose another run_dir"
        ) from None
    except OSError as error:
        raise ConfigError(f"run_dir: cannot write {error.filename or path}: {error.strerror}") from error
    return lock


def _stored_config(run_dir: Path) -> Path | None:
    """The config of a run that has made progress; that of its newest checkpoint where the run has lost it."""
    if not _has_progress(run_dir):
        return None
    of_checkpoints = sorted((run_dir / "checkpoints").glob("step-*/config.yaml"), reverse=True)
    return next((path for path in (run_dir / "config.yaml", *of_checkpoints) if path.exists()), None)


def _has_progress(run_dir: Path) -> bool:
    metrics = run_dir / "metrics.jsonl"
    return any((run_dir / "checkpoints").glob("step-*")) or (metrics.exists() and metrics.stat().st_size > 0)


def _stored_identity(data: Any, kind: type[JobConfig]) -> dict[str, Any]:
    """The identity of a config written by this version or an older one, which lacks the keys added since."""
    try:
        return identity(kind.model_validate(data))
    except ValidationError:  # it has keys or values that are gone: they are named as differences
        return _identifying(data)


def _identifying(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _flat(data, "").items() if not _may_change(key)}


def _may_change(key: str) -> bool:
    return any(fnmatch(key, pattern) for pattern in MAY_CHANGE)


def _flat(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v
            for name, child in value.items()
            for k, v in _flat(child, f"{path}.{name}" if path else name).items()
        }
    if isinstance(value, list):
        return {k: v for i, child in enumerate(value) for k, v in _flat(child, f"{path}.{i}").items()}
    return {path: value}
