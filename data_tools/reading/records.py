"""What every reader does with one record: count it, judge its content, or say why it holds none."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.documents import BadRecord, ReadCounts
from data_tools.reading.lines import EXCERPT_BYTES, MAX_LINE_BYTES

TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB"

_TOKEN_LIMIT = 1 << 32


def bad_record(counts: ReadCounts, path: str, position: int, reason: str, content: bytes | str) -> BadRecord:
    """The bad record that was counted last in `counts.records`; counts it as bad."""
    counts.bad += 1
    raw = content[:EXCERPT_BYTES]
    excerpt = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else without_surrogates(raw)
    return BadRecord(path, counts.records, position, without_surrogates(reason), excerpt.rstrip("\r\n"))


def without_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates, which no file could hold."""
    return text.encode("utf-8", "replace").decode()


def name_of(value: Any) -> str:
    """An id or source as text without lone surrogates: strings and numbers as they are, else ""."""
    if isinstance(value, str):
        return without_surrogates(value)
    return str(value) if isinstance(value, int | float) else ""


def decode_text(content: bytes) -> tuple[str, str]:
    """The text and "", or "" and why there is none."""
    try:
        return content.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 at byte {error.start}"


def tokens_of_list(values: Any) -> npt.NDArray[np.uint32] | str:
    """A list of ids as an array, or what it is instead."""
    if not isinstance(values, list):
        return f"not a list of integers but {type(values).__name__}"
    kinds = {kind.__name__ for kind in set(map(type, values))}
    if kinds - {"int"}:  # numpy would take booleans for 0 and 1
        return f"a list with {', '.join(sorted(kinds - {'int'}))}, not of integers only"
    if values and (min(values) < 0 or max(values) >= _TOKEN_LIMIT):
        return "a list with integers outside [0, 2^32)"
    return np.array(values, dtype=np.uint32)


def tokens_of_array(values: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint32] | str:
    """An array of ids as uint32, or what is wrong with it."""
    if values.size and (values.min() < 0 or values.max() >= _TOKEN_LIMIT):
        return "integers outside [0, 2^32)"
    return values.astype(np.uint32)
