"""Indexes of samples that take a while to build: made once, kept in a cache directory, mapped from there.

An index is a directory that holds a few files. Its name is the hash of all that its content depends on. Any
number of processes may want it at once: each builds under a name of its own, and the first to rename wins.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_tools.errors import DataError
from pretrain.data.philox import I64

PIECE_BITS = 20
MAX_PIECE = (1 << PIECE_BITS) - 1

U64 = npt.NDArray[np.uint64]


def index_directory(
    cache: Path, kind: str, parameters: Sequence[object], build: Callable[[Path], None]
) -> Path:
    """The directory of an index, built where it is missing.

    Args:
        cache: directory for indexes; created where missing.
        kind: first part of the name.
        parameters: everything that the content depends on, JSON-able.
        build: writes the files into an empty directory; raises DataError where the corpus has no samples.

    Raises:
        DataError: as `build`, or the cache cannot be written.
    """
    path = cache / f"{kind}-{xxhash.xxh3_128_hexdigest(json.dumps(list(parameters)).encode())}"
    if path.exists():
        return path
    draft = cache / f".{path.name}.{uuid.uuid4().hex}"
    try:
        draft.mkdir(parents=True)
        build(draft)
        _publish(draft, path)
    except OSError as error:
        raise DataError(f"cannot write the sample index {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def _publish(draft: Path, path: Path) -> None:
    try:
        draft.rename(path)
    except OSError:
        # A directory is there already: another process built the same bytes first.
        if not path.is_dir():
            raise


def map_array(path: Path, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array mapped from a file of an index.

    Raises:
        DataError: the file is missing, empty or cut short.
    """
    try:
        return np.memmap(path, dtype=dtype, mode="r")
    except (OSError, ValueError) as error:
        raise damaged(path.parent, str(error)) from error


def damaged(path: Path, problem: str) -> DataError:
    """The error for an index that cannot be used."""
    return DataError(f"the sample index {path} is damaged ({problem}); delete it and start again")


def sync(file: IO[bytes]) -> None:
    """Bring what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def join_pieces(starts: I64, lengths: I64) -> U64:
    """[n] ranges of the corpus stream in one word each: 44 bits of start, 20 of length."""
    joined: U64 = (starts.astype("<u8") << np.uint64(PIECE_BITS)) | lengths.astype("<u8")
    return joined


def split_pieces(pieces: U64) -> tuple[I64, I64]:
    """([n] starts, [n] lengths): the inverse of `join_pieces`."""
    starts = (pieces >> np.uint64(PIECE_BITS)).astype(np.int64)
    return starts, (pieces & np.uint64(MAX_PIECE)).astype(np.int64)
