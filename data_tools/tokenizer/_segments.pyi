from typing import Any, TypeAlias

import numpy as np

Buffer: TypeAlias = bytes | np.ndarray[Any, np.dtype[Any]]

def find(
    data: Buffer,
    start: int,
    stop: int,
    cuts: Buffer,
    slots: Buffer,
    keys: Buffer,
    key_ends: Buffer,
    entries: int,
    found: Buffer,
    fresh: Buffer,
    /,
) -> tuple[int, int, int, bytes]: ...
def gather(found: Buffer, id_ends: Buffer, ids: Buffer, /) -> bytes: ...
def unigram(
    lines: bytes,
    edges: Buffer,
    scores: Buffer,
    ids: Buffer,
    byte_ids: Buffer,
    unknown_id: int,
    unknown_score: int,
    ends: Buffer,
    /,
) -> bytes: ...
