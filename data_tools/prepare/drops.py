"""Order keys of the documents that are dropped as duplicates, looked up by range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.prepare.work import load_array

_KEY_BYTES = 16


def write_drops(path: Path, keys: npt.NDArray[np.bytes_]) -> None:
    """Write keys, [N] of type S16, in ascending order as pairs of 64-bit numbers."""
    pairs = np.frombuffer(keys.tobytes(), dtype=">u8").reshape(-1, 2)
    with path.open("wb") as file:
        np.save(file, pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))])


class Drops:
    """The dropped keys of a corpus; only what is asked for is read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open files of `write_drops`."""
        self._files: list[npt.NDArray[np.uint64]] = [load_array(path, mapped=True) for path in paths]

    def between(self, part: int, parts: int) -> set[bytes]:
        """Keys whose first 64 bits lie in the given one of so many equal ranges."""
        low, high = (-(-((part + i) << 64) // parts) for i in range(2))
        found: set[bytes] = set()
        for pairs in self._files:
            begin, end = (_position(pairs, bound) for bound in (low, high))
            raw = pairs[begin:end].tobytes()
            found.update(raw[at : at + _KEY_BYTES] for at in range(0, len(raw), _KEY_BYTES))
        return found

    def contain(self, keys: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
        """[N] whether each of the keys, [N] of type S16, is among them."""
        found = np.zeros(len(keys), np.bool_)
        for pairs in self._files:
            dropped = np.frombuffer(pairs.astype(">u8").tobytes(), keys.dtype)  # in ascending order
            if len(dropped):
                places = np.minimum(np.searchsorted(dropped, keys), len(dropped) - 1)
                found |= dropped[places] == keys
        return found


def _position(pairs: npt.NDArray[np.uint64], bound: int) -> int:
    """Number of keys below a bound of their first 64 bits."""
    if bound >= 1 << 64:
        return len(pairs)
    return int(np.searchsorted(pairs[:, 0], np.uint64(bound), side="left"))
