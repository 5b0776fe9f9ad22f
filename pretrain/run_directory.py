"""Whose a run directory is: claimed by one attempt at a time, lost when a newer attempt takes it over.

On one machine, and on file systems whose locks work across hosts, the lock of the running job refuses a
second one. Where locks do not reach (many NFS and Lustre mounts, or a node that was cut off and whose lock
expired), `attempt.json` names the attempt that owns the run. A newer attempt overwrites it; an older one that
wakes up again finds another name in it before its next write and ends.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pretrain.checkpoint.files import write_json, write_text
from pretrain.config import ConfigError, JobConfig, dump_yaml, exit_codes
from pretrain.config.identity import check_run_directory, lock_run_directory
from pretrain.config.run_files import BEAT_SECONDS, HEARTBEATS, OWNER
from pretrain.logs import log_rank_output
from pretrain.parallel.collectives import broadcast_from_main
from pretrain.parallel.topology import Topology


class ReplacedError(Exception):
    """A newer attempt owns the run; this one must not write any more."""

    exit_code = exit_codes.REPLACED


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write into a run directory, as long as no newer attempt has taken it."""

    run_dir: Path
    attempt: str
    """Name of this attempt, the same on every rank."""

    def check(self) -> None:
        """Make sure that the run is still ours; call before every write that others would see.

        Between this look and the write a moment remains. What a stale attempt could still do in it is to
        publish a checkpoint under the same name, of the same steps; never to tear one.

        Raises:
            ReplacedError: naming the attempt that owns the run now.
        """
        owner = read_owner(self.run_dir)
        if owner.get("attempt") != self.attempt:
            raise ReplacedError(
                f"{self.run_dir} now belongs to attempt {owner.get('attempt')} on {owner.get('host')}, begun "
                f"{owner.get('started')}; this attempt, {self.attempt}, ends without writing"
            )


def read_owner(run_dir: Path) -> dict[str, Any]:
    """What attempt.json says; empty when no attempt was made."""
    try:
        owner: dict[str, Any] = json.loads((run_dir / OWNER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"run_dir: {run_dir / OWNER} is damaged ({error}); remove it") from error
    return owner


@contextmanager
def claim_run_directory(config: JobConfig, topology: Topology) -> Iterator[Claim]:
    """Check a run directory against its earlier config, make it ours, write config.yaml.

    Raises:
        ConfigError: On every rank, if it belongs to another config or another job is using it.
    """
    run_dir = Path(config.run_dir)
    problem, lock, attempt = None, None, ""
    if topology.is_main:
        attempt = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
        try:
            lock = lock_run_directory(config.run_dir)
            check_run_directory(config)
            refuse_living_attempt(run_dir)
            write_text(run_dir / "config.yaml", dump_yaml(config))
            write_json(run_dir / OWNER, _owner(attempt, topology))
        except ConfigError as error:
            problem = error.problems
        except OSError as error:
            problem = [f"run_dir: cannot write {error.filename or config.run_dir}: {error.strerror}"]
    problem, attempt = broadcast_from_main((problem, attempt))
    if problem:
        raise ConfigError(problem)
    log_rank_output(run_dir, topology.rank)
    claim = Claim(run_dir, attempt)
    yield claim
    if lock:
        claim.check()
        write_json(run_dir / OWNER, _owner(attempt, topology) | {"ended": _now()})
        lock.close()


def refuse_living_attempt(run_dir: Path, beat_seconds: float = BEAT_SECONDS) -> None:
    """Look for signs of life of an attempt on another host, whose lock may not reach here.

    Raises:
        ConfigError: naming the host.
    """
    owner = read_owner(run_dir)
    if not owner or "ended" in owner or owner["host"] == socket.gethostname():
        return  # on this host the lock has answered
    path = run_dir / HEARTBEATS / "rank-0.json"
    before = _content(path)
    if before is None:
        return
    deadline = time.monotonic() + 3 * beat_seconds
    while time.monotonic() < deadline:
        time.sleep(beat_seconds / 5)
        if _content(path) != before:
            raise ConfigError(
                f"run_dir: another job is training in {run_dir}, attempt {owner['attempt']} on "
                f"{owner['host']}; wait for it or choose another run_dir"
            )


def _owner(attempt: str, topology: Topology) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _now(),
        "world_size": topology.world_size,
    }


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
