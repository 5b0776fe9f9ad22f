"""The work directory of a corpus in the making: a plan, and what each finished task left.

    .CORPUS.work/
        plan.json               what is to be made from what; written once
        read-000012.json        record of a finished task: written last, so a task without it is not done
        read-000012.spill ...   its outputs
        corpus/                 the corpus, which becomes CORPUS when everything is there

Every file is written under a temporary name, brought to disk and renamed, so a record stands for outputs that
outlive a power failure. Tasks are deterministic, so one that runs twice, even at the same time, does no harm:
the same bytes replace the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.errors import DataError
from data_tools.prepare.lock import hold_directory
from data_tools.prepare.plan import Plan

PLAN_NAME = "plan.json"
CORPUS_NAME = "corpus"
SPILL, INDEX, SIGNATURES, BAD = ".spill", ".index", ".signatures", ".bad.jsonl"
EDGES, DROPS = ".edges.npy", ".drops.npy"
SHARD, PROVENANCE, ROWS = ".tar", ".parquet", ".rows.npy"
_FAILED = "failed"
_ARRAY_HEAD = 256  # bytes; the head of a .npy file is shorter
TEMPORARY = ".partial"


@dataclass(frozen=True, slots=True)
class Work:
    """Paths and records of a work directory.

    Attributes:
        path: the directory.
    """

    path: Path

    @classmethod
    def of(cls, out: Path) -> Work:
        """The work directory of the corpus directory `out`, on the same file system."""
        out = Path(os.path.realpath(out))
        return cls(out.parent / f".{out.name}.work")

    @property
    def out(self) -> Path:
        """The corpus directory that this becomes."""
        return self.path.parent / self.path.name.removeprefix(".").removesuffix(".work")

    @property
    def corpus(self) -> Path:
        """Where the corpus grows."""
        return self.path / CORPUS_NAME

    def output(self, stage: str, number: int, suffix: str) -> Path:
        """An output of a task."""
        return self.path / f"{stage}-{number:06d}{suffix}"

    def record(self, stage: str, number: int) -> dict[str, Any] | None:
        """What a finished task wrote down; None if it is not finished."""
        path = self.output(stage, number, ".json")
        try:
            return dict(orjson.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise DataError(f"{path} is damaged ({error}): remove it and run the command again") from error

    def finished(self, stage: str, number: int) -> dict[str, Any]:
        """What a task wrote down that must be finished by now.

        Raises:
            DataError: it is not.
        """
        record = self.record(stage, number)
        if record is None:
            raise DataError(
                f"{self.path}: task {number} of stage {stage} is not finished: run the command again"
            )
        return record

    def finish(self, stage: str, number: int, record: dict[str, Any]) -> None:
        """Mark a task as finished; its outputs are in place."""
        with self.writing(self.output(stage, number, ".json")) as (path,):
            path.write_bytes(orjson.dumps(record))

    def missing(self, stage: str, count: int) -> list[int]:
        """Numbers of the tasks of a stage that are not finished."""
        done = set(os.listdir(self.path))
        return [number for number in range(count) if f"{stage}-{number:06d}.json" not in done]

    @contextlib.contextmanager
    def writing(self, *targets: Path, durable: bool = True) -> Iterator[tuple[Path, ...]]:
        """Give temporary names; the files become `targets` when the block ends without an exception.

        Args:
            targets: the final names.
            durable: wait until they are on the disk; not needed where a loss would be found later.
        """
        suffix = f".{socket.gethostname()}-{os.getpid()}{TEMPORARY}"
        temporary = tuple(target.with_name(f".{target.name}{suffix}") for target in targets)
        try:
            yield temporary
            for source in temporary if durable else ():
                _bring_to_disk(source)
            for source, target in zip(temporary, targets, strict=True):
                source.replace(target)
        except BaseException:
            for source in temporary:
                source.unlink(missing_ok=True)
            raise

    def write_plan(self, plan: Plan) -> None:
        """Store the plan."""
        with self.writing(self.path / PLAN_NAME) as (path,):
            path.write_bytes(orjson.dumps(plan.to_json()))

    def plan(self) -> Plan:
        """The stored plan; read once in a process.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = self.path / PLAN_NAME
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise DataError(f"no plan at {path}: run `headwater data prepare` again") from error
        return _load_plan(path, status.st_ino, status.st_mtime_ns)

    def has_plan(self) -> bool:
        """Whether a plan is stored."""
        return (self.path / PLAN_NAME).exists()

    def holds(self, plan: Plan) -> bool:
        """Whether this plan is stored; a damaged one, or of another release, is another."""
        try:
            return self.plan() == plan
        except DataError:
            return False

    def clear(self) -> None:
        """Throw everything away but the directory itself, which may be locked."""
        (self.path / PLAN_NAME).unlink(missing_ok=True)  # first: without it the rest means nothing
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def remove_leftovers(self) -> None:
        """Remove temporary files and notes of failure of earlier processes; nobody else may be at work."""
        for path in (*self.path.rglob(f".*{TEMPORARY}"), *self.path.glob(f"{_FAILED}-*.json")):
            path.unlink()

    @contextlib.contextmanager
    def telling_others(self, index: int) -> Iterator[None]:
        """Leave a note if the block ends with an exception, so that processes that wait for this one stop."""
        note = self.output(_FAILED, index, ".json")
        note.unlink(missing_ok=True)
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError), self.writing(note) as (path,):  # the error itself matters more
                what = str(error) if isinstance(error, Exception) else "it was stopped"
                path.write_bytes(orjson.dumps({"error": what or type(error).__name__}))
            raise

    def check_others(self) -> None:
        """Raise a DataError if another process left a note of its failure."""
        with contextlib.suppress(FileNotFoundError):  # the directory is removed at the end
            for note in self.path.glob(f"{_FAILED}-*.json"):
                failed = orjson.loads(note.read_bytes())
                number = int(note.stem.removeprefix(f"{_FAILED}-"))
                raise DataError(f"the process with --task-index {number} failed: {failed['error']}")

    def remove_published(self) -> None:
        """Remove the directory after the corpus has got its name, unless another process is in it still."""
        if self.path.exists() and not self.corpus.exists():
            with contextlib.suppress(DataError), hold_directory(self.path, shared=False):
                shutil.rmtree(self.path)


def signature_path(work: Work, task: int, part: int) -> Path:
    """One of the signature files of a reading task."""
    return work.output("read", task, f"{SIGNATURES}-{part}")


def load_array(path: Path, mapped: bool = False) -> npt.NDArray[Any]:
    """An array that a task left; `mapped` reads only what is looked at.

    Raises:
        DataError: the file is damaged.
    """
    mapped = mapped and path.stat().st_size > _ARRAY_HEAD  # an empty array cannot be mapped
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        record = path.with_name(path.name.split(".")[0] + ".json")
        raise DataError(f"{path} is damaged ({error}): remove {record} and run the command again") from error
    return array


def _bring_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def _load_plan(path: Path, _inode: int, _mtime_ns: int) -> Plan:
    """Read a plan; another file of the same name is another plan."""
    try:
        return Plan.from_json(orjson.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): remove {path.parent} and run again") from error
